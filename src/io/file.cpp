#include "io/file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <system_error>

#include "core/check.hpp"
#include "io/quote.hpp"

namespace qkv::io {
namespace {

[[noreturn]] void fail_with_errno(std::string_view action, const std::string& name) {
    const std::string reason = std::system_category().message(errno);
    fail(ErrorCode::io, "cannot ", action, " ", name, ": ", reason);
}

std::string_view kind_of(mode_t mode) {
    switch (mode & static_cast<mode_t>(S_IFMT)) {
        case S_IFDIR:
            return "a directory";
        case S_IFIFO:
            return "a pipe";
        case S_IFSOCK:
            return "a socket";
        default:
            return "a device";
    }
}

/// read or write, again after an interruption; gives the number of bytes.
template <class Transfer>
std::size_t transfer(const Transfer& once, std::string_view action, const std::string& name) {
    while (true) {
        const ssize_t count = once();
        if (count >= 0) {
            return static_cast<std::size_t>(count);
        }
        if (errno != EINTR) {
            fail_with_errno(action, name);
        }
    }
}

/// The file being written: removed unless it was moved to its place.
class TemporaryFile {
public:
    TemporaryFile(const std::filesystem::path& directory, const std::string& name, mode_t mode) : name_(name) {
        static std::atomic<unsigned> counter{0};
        constexpr int kAttempts = 100;  // names left behind by a process that was killed
        for (int attempt = 0; attempt < kAttempts && descriptor_ < 0; ++attempt) {
            path_ = directory / concat(".qkv-", ::getpid(), "-", counter++, ".tmp");
            descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
            if (descriptor_ < 0 && errno != EEXIST) {
                break;
            }
        }
        if (descriptor_ < 0) {
            fail_with_errno("write", name_);
        }
    }
    ~TemporaryFile() {
        close();
        if (!path_.empty()) {
            (void)::unlink(path_.c_str());
        }
    }
    TemporaryFile(const TemporaryFile&) = delete;
    TemporaryFile& operator=(const TemporaryFile&) = delete;
    TemporaryFile(TemporaryFile&&) = delete;
    TemporaryFile& operator=(TemporaryFile&&) = delete;

    void write(std::span<const std::byte> bytes) {
        while (!bytes.empty()) {
            bytes = bytes.subspan(
                transfer([&] { return ::write(descriptor_, bytes.data(), bytes.size()); }, "write", name_));
        }
    }

    void move_to(const std::filesystem::path& target) {
        if (::fsync(descriptor_) != 0 || close() != 0 || ::rename(path_.c_str(), target.c_str()) != 0) {
            fail_with_errno("write", name_);
        }
        path_.clear();
    }

    void set_mode(mode_t mode) {
        if (::fchmod(descriptor_, mode) != 0) {
            fail_with_errno("write", name_);
        }
    }

private:
    int close() noexcept {
        const int result = descriptor_ < 0 ? 0 : ::close(descriptor_);
        descriptor_ = -1;
        return result;
    }

    std::string name_;
    std::filesystem::path path_;
    int descriptor_ = -1;
};

/// Makes the rename itself last; a file system that cannot do so for a directory is no error.
void flush_directory(const std::filesystem::path& directory) noexcept {
    const int descriptor = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor >= 0) {
        (void)::fsync(descriptor);
        (void)::close(descriptor);
    }
}

}  // namespace

void MemoryBytes::read_at(std::uint64_t offset, std::span<std::byte> target) const {
    if (offset > bytes_.size() || target.size() > bytes_.size() - offset) {
        fail(ErrorCode::io, name_, ": no ", target.size(), " bytes at offset ", offset, " of ", bytes_.size());
    }
    std::ranges::copy(bytes_.subspan(static_cast<std::size_t>(offset), target.size()), target.begin());
}

InputFile::InputFile(const std::filesystem::path& path) : name_(quote(path.native())) {
    // O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor_ < 0) {
        fail_with_errno("open", name_);
    }
    try {
        size_ = current_size();
    } catch (...) {
        (void)::close(descriptor_);
        throw;
    }
}

InputFile::~InputFile() { (void)::close(descriptor_); }

std::uint64_t InputFile::current_size() const {
    struct stat status{};
    if (::fstat(descriptor_, &status) != 0) {
        fail_with_errno("examine", name_);
    }
    if (!S_ISREG(status.st_mode)) {
        fail(ErrorCode::io, "cannot read ", name_, ": it is ", kind_of(status.st_mode), "; expected a regular file");
    }
    return static_cast<std::uint64_t>(status.st_size);
}

void InputFile::read_at(std::uint64_t offset, std::span<std::byte> target) const {
    while (!target.empty()) {
        const std::size_t count =
            transfer([&] { return ::pread(descriptor_, target.data(), target.size(), static_cast<off_t>(offset)); },
                     "read", name_);
        if (count == 0) {
            break;
        }
        target = target.subspan(count);
        offset += count;
    }
    const std::uint64_t size_now = current_size();
    if (!target.empty() || size_now != size_) {
        fail(ErrorCode::io, "cannot read ", name_, ": it changed from ", size_, " to ", size_now,
             " bytes while being read");
    }
}

std::string read_all(const ByteSource& source, std::uint64_t limit) {
    if (source.size() > limit) {
        fail(ErrorCode::format, source.name(), " is ", source.size(), " bytes long; expected at most ", limit);
    }
    std::string content(static_cast<std::size_t>(source.size()), '\0');
    source.read_at(0, std::as_writable_bytes(std::span(content)));
    return content;
}

void write_file(const std::filesystem::path& path, const std::function<void(const WriteBytes&)>& produce) {
    const std::string name = quote(path.native());
    std::error_code ignored;
    // Through a link to what it names: replacing the link itself would leave the real file old.
    const std::filesystem::path resolved =
        std::filesystem::is_symlink(path, ignored) ? std::filesystem::weakly_canonical(path, ignored) : path;
    const std::filesystem::path& target = resolved.empty() ? path : resolved;

    struct stat old{};
    const bool replaces = ::stat(target.c_str(), &old) == 0;
    if (!replaces && std::filesystem::is_symlink(target, ignored)) {
        fail(ErrorCode::io, "cannot write ", name, ": it is a link to something that is not there");
    }
    // The file behind this program's own output is being written already.
    for (const int stream : {STDOUT_FILENO, STDERR_FILENO}) {
        struct stat open_file{};
        if (replaces && ::fstat(stream, &open_file) == 0 && open_file.st_dev == old.st_dev &&
            open_file.st_ino == old.st_ino) {
            fail(ErrorCode::io, "cannot write ", name, ": the program's own output goes there");
        }
    }
    if (replaces && !S_ISREG(old.st_mode)) {
        fail(ErrorCode::io, "cannot write ", name, ": it is ", kind_of(old.st_mode),
             "; expected a regular file or none");
    }
    const std::filesystem::path directory = target.has_parent_path() ? target.parent_path() : ".";
    constexpr mode_t kReadWriteForAll = 0666;  // less the umask
    constexpr mode_t kPermissions = 0777;
    TemporaryFile file(directory, name, kReadWriteForAll);
    produce([&file](std::span<const std::byte> bytes) { file.write(bytes); });
    if (replaces) {
        file.set_mode(old.st_mode & kPermissions);
    }
    file.move_to(target);
    flush_directory(directory);
}

}  // namespace qkv::io
