// Files: reading without being surprised by what a path leads to, and writing that happens whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "qkv/export.h"

namespace qkv::io {

/// Bytes to read from anywhere: a file, or memory.
class ByteSource {
public:
    ByteSource() = default;
    virtual ~ByteSource() = default;
    ByteSource(const ByteSource&) = delete;
    ByteSource& operator=(const ByteSource&) = delete;
    ByteSource(ByteSource&&) = delete;
    ByteSource& operator=(ByteSource&&) = delete;

    /// What messages call it.
    [[nodiscard]] virtual const std::string& name() const noexcept = 0;
    [[nodiscard]] virtual std::uint64_t size() const noexcept = 0;
    /// Fills `target` from `offset` on; throws Error(io) if it cannot.
    virtual void read_at(std::uint64_t offset, std::span<std::byte> target) const = 0;
};

/// Bytes that somebody else keeps in memory.
class MemoryBytes final : public ByteSource {
public:
    MemoryBytes(std::span<const std::byte> bytes, std::string_view name) : bytes_(bytes), name_(name) {}
    [[nodiscard]] const std::string& name() const noexcept override { return name_; }
    [[nodiscard]] std::uint64_t size() const noexcept override { return bytes_.size(); }
    void read_at(std::uint64_t offset, std::span<std::byte> target) const override;

private:
    std::span<const std::byte> bytes_;
    std::string name_;
};

/// A regular file open for reading. Reads copy: a mapped file that someone truncates kills the process.
class InputFile final : public ByteSource {
public:
    /// Throws Error(io) if `path` is missing, unreadable or no regular file (a directory, a pipe, a device).
    explicit InputFile(const std::filesystem::path& path);
    ~InputFile() override;
    InputFile(const InputFile&) = delete;
    InputFile& operator=(const InputFile&) = delete;
    InputFile(InputFile&&) = delete;
    InputFile& operator=(InputFile&&) = delete;

    [[nodiscard]] const std::string& name() const noexcept override { return name_; }
    [[nodiscard]] std::uint64_t size() const noexcept override { return size_; }
    /// Also throws Error(io) if the file's size is no longer what it was.
    void read_at(std::uint64_t offset, std::span<std::byte> target) const override;

private:
    [[nodiscard]] std::uint64_t current_size() const;

    std::string name_;
    int descriptor_ = -1;
    std::uint64_t size_ = 0;
};

/// Everything in `source`. Throws Error(format) if that is more than `limit` bytes.
[[nodiscard]] std::string read_all(const ByteSource& source, std::uint64_t limit);

/// Takes a piece of the file that write_file is writing.
using WriteBytes = std::function<void(std::span<const std::byte>)>;

/// Makes or replaces the file at `path` with what `produce` writes: into a new file beside it, flushed to the disk,
/// then renamed. On any exception, from `produce` too, the new file is removed and `path` is as it was. Throws
/// Error(io). (Exported: the program writes its pages with it.)
QKV_EXPORT void write_file(const std::filesystem::path& path, const std::function<void(const WriteBytes&)>& produce);

}  // namespace qkv::io
