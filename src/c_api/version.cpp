// The version as the build knows it: QKV_PROJECT_VERSION comes from CMake, the numbers from the header.
#include "qkv/qkv.h"

#define QKV_TEXT_OF(x) #x
#define QKV_TEXT(x) QKV_TEXT_OF(x)

namespace {

constexpr char kVersion[] = QKV_TEXT(QKV_VERSION_MAJOR) "." QKV_TEXT(QKV_VERSION_MINOR) "." QKV_TEXT(QKV_VERSION_PATCH);

constexpr bool same(const char* a, const char* b) { return *a == *b && (*a == '\0' || same(a + 1, b + 1)); }
static_assert(same(kVersion, QKV_PROJECT_VERSION), "qkv.h and CMakeLists.txt name different versions");

}  // namespace

extern "C" {

int32_t qkv_version(void) { return QKV_VERSION; }
const char* qkv_version_string(void) { return kVersion; }

}  // extern "C"
