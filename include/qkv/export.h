/* What a shared libqkv shows to other programs. Everything else is built with hidden visibility. */
#ifndef QKV_EXPORT_H
#define QKV_EXPORT_H

/* On a namespace of a public header, `namespace qkv QKV_EXPORT {`, and on a C function. Function templates outside
 * classes need it once more: GCC forgets their namespace where they are instantiated. */
#if defined(__GNUC__)
#define QKV_EXPORT __attribute__((visibility("default")))
#else
#define QKV_EXPORT
#endif

#endif
