// The structures of DLPack 1.x (https://dmlc.github.io/dlpack/latest/c_api.html), as far as CPU arrays need them, and
// of its C exchange table (DLPack 1.3, `__dlpack_c_exchange_api__`). Their layout is a binary interface: fields keep
// their order, names are ours.
#pragma once

#include <cstdint>

namespace qkv::python::dlpack {

enum Code : std::uint8_t {
    kInt = 0,
    kUInt = 1,
    kFloat = 2,
    kBfloat = 4,
    kComplex = 5,
    kBool = 6,
};

inline constexpr std::int32_t kCpu = 1;
inline constexpr std::uint32_t kMajor = 1;
inline constexpr std::uint32_t kMinor = 1;
inline constexpr std::uint64_t kReadOnly = 1;

struct Version {
    std::uint32_t major;
    std::uint32_t minor;
};

struct Device {
    std::int32_t type;
    std::int32_t id;
};

struct DataType {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    std::int32_t rank;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements; null: row-major
    std::uint64_t byte_offset;
};

/// Before version 1, in a capsule named "dltensor".
struct Unversioned {
    Tensor tensor;
    void* context;
    void (*deleter)(Unversioned*);
};

/// From version 1 on, in a capsule named "dltensor_versioned".
struct Versioned {
    Version version;
    void* context;
    void (*deleter)(Versioned*);
    std::uint64_t flags;
    Tensor tensor;
};

/// What a type's `__dlpack_c_exchange_api__` capsule ("dlpack_exchange_api") holds.
struct ExchangeTable {
    Version version;
    ExchangeTable* previous;
    int (*allocate)(Tensor* prototype, Versioned** out, void* context,
                    void (*set_error)(void* context, const char* kind, const char* message));
    int (*from_object)(void* object, Versioned** out);
    int (*to_object)(Versioned* tensor, void** object);
    int (*borrow)(void* object, Tensor* out);  // may be null
    int (*current_stream)(std::int32_t device, std::int32_t id, void** stream);
};

}  // namespace qkv::python::dlpack
