#include "c_api/boundary.hpp"

#include <algorithm>
#include <array>
#include <exception>
#include <new>
#include <string_view>
#include <system_error>

namespace qkv::c_api {

namespace {

/// A plain array: remembering a message must not fail, and threads may end in any order.
constexpr std::size_t kLongestMessage = 1024;
thread_local std::array<char, kLongestMessage> last_error{};

qkv_status remember(qkv_status status, std::string_view message) noexcept {
    std::size_t length = std::min(message.size(), kLongestMessage - 1);
    // Never half a character: step back over continuation bytes.
    while (length < message.size() && length > 0 && (static_cast<unsigned char>(message[length]) & 0xC0U) == 0x80U) {
        --length;
    }
    std::ranges::copy(message.substr(0, length), last_error.begin());
    last_error[length] = '\0';
    return status;
}

qkv_status status_of(ErrorCode code) noexcept {
    switch (code) {
        case ErrorCode::invalid_argument:
            return QKV_INVALID_ARGUMENT;
        case ErrorCode::shape_mismatch:
            return QKV_SHAPE_MISMATCH;
        case ErrorCode::out_of_range:
            return QKV_OUT_OF_RANGE;
        case ErrorCode::unsupported:
            return QKV_UNSUPPORTED;
        case ErrorCode::io:
            return QKV_IO;
        case ErrorCode::format:
            return QKV_FORMAT;
        case ErrorCode::out_of_memory:
            return QKV_OUT_OF_MEMORY;
    }
    return QKV_INTERNAL;
}

}  // namespace

qkv_status status_of_exception() noexcept {
    try {
        throw;
    } catch (const Error& error) {
        return remember(status_of(error.code()), error.what());
    } catch (const std::bad_alloc&) {
        return remember(QKV_OUT_OF_MEMORY, "out of memory");
    } catch (const std::system_error& error) {  // threads that cannot be started
        return remember(QKV_OUT_OF_MEMORY, error.what());
    } catch (const std::exception& error) {
        return remember(QKV_INTERNAL, error.what());
    } catch (...) {
        return remember(QKV_INTERNAL, "an exception of unknown type");
    }
}

void check_struct_size(const void* given, std::size_t size, std::size_t known, const char* name) {
    constexpr std::size_t kLargest = 4096;
    if (size < sizeof(std::size_t) || size > kLargest || size % 8 != 0) {
        fail(ErrorCode::invalid_argument, name, ".struct_size is ", size, "; expected the struct's sizeof, ", known,
             ", which its QKV_..._INIT sets");
    }
    const auto* bytes = static_cast<const std::byte*>(given);
    if (size > known && std::any_of(bytes + known, bytes + size, [](std::byte byte) { return byte != std::byte{0}; })) {
        fail(ErrorCode::unsupported, name, ".struct_size is ", size, " and the struct asks for something that qkv ",
             qkv_version_string(), " does not know (it knows the first ", known, " bytes)");
    }
}

bool checked_flag(std::int32_t value, const char* name) {
    if (value != 0 && value != 1) {
        fail(ErrorCode::invalid_argument, name, " is ", value, "; expected 0 or 1");
    }
    return value == 1;
}

void check_device(qkv_device device, std::int32_t device_id, const char* name) {
    if (device != QKV_CPU || device_id != 0) {
        fail(ErrorCode::unsupported, name, " is on device ", device, ", id ", device_id,
             "; expected the CPU (0, id 0)");
    }
}

TensorView to_view(const qkv_tensor* tensor, const char* name) {
    const qkv_tensor& given = required(tensor, name);
    check_device(given.device, given.device_id, name);
    if (given.dtype < QKV_F32 || given.dtype > QKV_BOOL) {
        fail(ErrorCode::unsupported, name, " has the unknown type ", given.dtype);
    }
    if (given.reserved != 0) {
        fail(ErrorCode::invalid_argument, name, ".reserved is ", given.reserved, "; expected 0");
    }
    TensorView view;
    view.data = given.data;
    view.dtype = static_cast<DType>(given.dtype);
    std::ranges::copy(given.shape, view.shape.begin());
    std::ranges::copy(given.strides, view.strides.begin());
    return view;
}

std::optional<TensorView> to_optional_view(const qkv_tensor* tensor, const char* name) {
    return tensor == nullptr ? std::nullopt : std::optional(to_view(tensor, name));
}

std::span<const std::int64_t> to_span(const std::int64_t* numbers, std::int64_t count, const char* name) {
    if (count < 0) {
        fail(ErrorCode::invalid_argument, name, " has ", count, " numbers; expected 0 or more");
    }
    if (numbers == nullptr && count > 0) {
        fail(ErrorCode::invalid_argument, name, " is NULL; expected ", count, " numbers");
    }
    return {numbers, static_cast<std::size_t>(count)};
}

std::span<std::byte> to_workspace(void* workspace, std::size_t bytes) {
    if ((workspace == nullptr) != (bytes == 0)) {
        fail(ErrorCode::invalid_argument, "workspace is ", workspace == nullptr ? "NULL" : "given",
             " and workspace_size ", bytes, "; expected both or neither");
    }
    return {static_cast<std::byte*>(workspace), bytes};
}

}  // namespace qkv::c_api

extern "C" {

const char* qkv_last_error(void) { return qkv::c_api::last_error.data(); }

const char* qkv_status_name(qkv_status status) {
    switch (status) {
        case QKV_OK:
            return "ok";
        case QKV_INVALID_ARGUMENT:
            return "invalid argument";
        case QKV_SHAPE_MISMATCH:
            return "shape mismatch";
        case QKV_OUT_OF_RANGE:
            return "out of range";
        case QKV_UNSUPPORTED:
            return "unsupported";
        case QKV_IO:
            return "input or output";
        case QKV_FORMAT:
            return "file format";
        case QKV_OUT_OF_MEMORY:
            return "out of memory";
        case QKV_INTERNAL:
            return "internal error";
        default:
            return "unknown status";
    }
}

}  // extern "C"
