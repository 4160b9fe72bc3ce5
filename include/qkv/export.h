/* What a shared libqkv shows to other programs. Everything else is built with hidden visibility. */
#ifndef QKV_EXPORT_H
#define QKV_EXPORT_H

/* On a function, or on a namespace of a public header: `namespace qkv QKV_EXPORT {`. */
#if defined(__GNUC__)
#define QKV_EXPORT __attribute__((visibility("default")))
#else
#define QKV_EXPORT
#endif

#endif
