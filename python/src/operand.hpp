// An array that a caller hands in, read in place.
#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dlpack.hpp"
#include "qkv/view.hpp"

namespace qkv::python {

namespace nb = nanobind;

inline constexpr int kMaxRank = 16;

/// A Python array with its memory held: anything with the buffer protocol or DLPack, and ml_dtypes' bfloat16 arrays,
/// which export neither. Nothing is copied. Construct and destroy it with the GIL held; read it without.
class Operand {
public:
    enum class Access : std::uint8_t {
        read,
        read_value,  ///< as read, and a tensor that requires grad too: the caller sees to its gradient
        write,
        write_new,  ///< as write, and autograd knows nothing of the memory yet
    };

    Operand() = default;
    /// Messages call it `name`. Throws TypeError for what is no array, BufferError for memory that is not the CPU's or
    /// is read-only and to be written.
    Operand(nb::handle object, const char* name, Access access = Access::read);
    Operand(const Operand&) = delete;
    Operand& operator=(const Operand&) = delete;
    Operand(Operand&& other) noexcept;
    Operand& operator=(Operand&& other) noexcept;
    ~Operand() { release(); }

    [[nodiscard]] bool given() const noexcept { return name_ != nullptr; }
    [[nodiscard]] const char* name() const noexcept { return name_; }
    [[nodiscard]] int rank() const noexcept { return rank_; }
    [[nodiscard]] std::int64_t size(int dim) const noexcept { return shape_[static_cast<std::size_t>(dim)]; }
    [[nodiscard]] std::int64_t stride(int dim) const noexcept { return strides_[static_cast<std::size_t>(dim)]; }
    [[nodiscard]] void* data() const noexcept { return data_; }
    [[nodiscard]] const dlpack::DataType& type() const noexcept { return type_; }
    /// "int32", "bfloat16", …
    [[nodiscard]] std::string type_name() const;
    /// "(2, 8, 128, 64)"
    [[nodiscard]] std::string shape_text() const;

    /// Throws TypeError unless it is one of the library's types.
    [[nodiscard]] DType dtype() const;
    /// Sizes of 1 are put in front: rank 2 [a, b] is seen as [1, 1, a, b]. Throws ValueError past rank 4.
    [[nodiscard]] TensorView view() const;
    /// [.., T], one number per query row, seen as [.., T, 1].
    [[nodiscard]] TensorView row_view() const;
    /// [Hq] or [B, Hq], one number per head, seen as [B, Hq, 1, 1].
    [[nodiscard]] TensorView head_view() const;
    /// Whole numbers (any integer type of 8 to 64 bits), rank 1, copied.
    [[nodiscard]] std::vector<std::int64_t> integers() const;

private:
    bool read_buffer(nb::handle object, Access access);
    void read_bfloat16(nb::handle object, Access access);
    bool read_exchange(nb::handle object, Access access);
    void respect_autograd(nb::handle tensor, Access access) const;
    bool read_dlpack(nb::handle object);
    void take(const dlpack::Tensor& tensor);
    void release() noexcept;
    [[noreturn]] void refuse(PyObject* exception, const std::string& what) const;

    const char* name_ = nullptr;
    void* data_ = nullptr;
    dlpack::DataType type_{};
    int rank_ = 0;
    bool read_only_ = false;
    std::array<std::int64_t, kMaxRank> shape_{};
    std::array<std::int64_t, kMaxRank> strides_{};  // in elements

    // Who keeps the memory: one of these.
    Py_buffer buffer_{};
    dlpack::Versioned* versioned_ = nullptr;
    dlpack::Unversioned* unversioned_ = nullptr;
    nb::object borrowed_from_;
};

/// A given array, or nothing for None.
[[nodiscard]] inline Operand optional_operand(nb::handle object, const char* name,
                                              Operand::Access access = Operand::Access::read) {
    return object.is_none() ? Operand() : Operand(object, name, access);
}

/// A list, a tuple or an array of whole numbers. Throws TypeError naming `name`.
[[nodiscard]] std::vector<std::int64_t> integers(nb::handle object, const char* name);
/// The same, or one whole number.
[[nodiscard]] std::vector<std::int64_t> one_or_more_integers(nb::handle object, const char* name);

}  // namespace qkv::python
