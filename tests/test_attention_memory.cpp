// Workspace without allocation, and views whose offsets pass 2^31 and 2^32 elements.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "qkv/kv_cache.hpp"
#include "support/small.hpp"

namespace {
std::atomic<std::int64_t> allocations{0};

void* counted(std::size_t size) {
    ++allocations;
    if (void* memory = std::malloc(size == 0 ? 1 : size)) {
        return memory;
    }
    throw std::bad_alloc();
}
}  // namespace

void* operator new(std::size_t size) { return counted(size); }
void* operator new[](std::size_t size) { return counted(size); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return ++allocations, std::malloc(size); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept { return ++allocations, std::malloc(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace qkv {
namespace {

using support::Small;

TEST(AttentionMemory, ACallWithAWorkspaceAllocatesNothing) {
    Small<float> p(
        {.batch = 2, .heads = 4, .kv_heads = 2, .queries = 150, .keys = 150, .head_dim = 32, .value_dim = 32});
    const std::int64_t starts[] = {0, 60, 150};
    p.s.batch = 1;
    std::vector<float> bias(150 * 150), dbias(bias.size()), numbers(4, 0.5F), dnumbers(4);
    AttentionOptions options;
    options.mask = Mask::causal(Align::top_left) & Mask::packed(starts, starts) &
                   Mask::bias(view(bias.data(), {1, 1, 150, 150})) & Mask::alibi(per_head(numbers.data(), 4));
    options.softcap = 10;
    options.dropout.p = 0.1;
    options.sinks = per_head(numbers.data(), 4);
    for (const std::int64_t threads : {1, 3, 16}) {
        const Runtime runtime(threads);
        AttentionExtras extras;
        extras.lse = p.lse_view();
        const auto size =
            attention_workspace_size(p.q_view(), p.k_view(), p.v_view(), p.out_view(), options, extras, runtime);
        const support::Guarded workspace(size);
        extras.workspace = {workspace.data(), size};
        AttentionGradients gradients = p.gradients();
        gradients.dbias = view(dbias.data(), {1, 1, 150, 150});
        gradients.dalibi = per_head(dnumbers.data(), 4);
        const auto backward_size = attention_backward_workspace_size(p.q_view(), p.k_view(), p.v_view(), p.d_out_view(),
                                                                     p.saved(), gradients, options, runtime);
        const support::Guarded backward_workspace(backward_size);
        gradients.workspace = {backward_workspace.data(), backward_size};
        runtime.parallel_for(threads, [](std::int64_t) {});  // starts the threads
        const std::int64_t before = allocations;
        attention(p.q_view(), p.k_view(), p.v_view(), p.out_view(), options, extras, runtime);
        attention_backward(p.q_view(), p.k_view(), p.v_view(), p.d_out_view(), p.saved(), gradients, options, runtime);
        EXPECT_EQ(allocations, before) << threads;
    }
}

TEST(AttentionMemory, DecodeWithAWorkspaceAllocatesNothing) {
    Small<float> p(
        {.batch = 1, .heads = 8, .kv_heads = 2, .queries = 30, .keys = 1300, .head_dim = 32, .value_dim = 32});
    KvCache cache = KvCache::paged({.kv_heads = 2, .head_dim = 32}, {.blocks = 22});
    const SequenceId id = cache.add();
    cache.append({{&id, 1}}, p.k_view(), p.v_view());
    AttentionOptions options;
    options.mask = Mask::causal(Align::bottom_right);
    for (const std::int64_t threads : {1, 3, 16}) {
        const Runtime runtime(threads);
        AttentionExtras extras;
        extras.lse = p.lse_view();
        const auto size =
            attention_workspace_size(p.q_view(), cache, {{&id, 1}}, p.out_view(), options, extras, runtime);
        const support::Guarded workspace(size);
        extras.workspace = {workspace.data(), size};
        runtime.parallel_for(threads, [](std::int64_t) {});  // starts the threads
        const std::int64_t before = allocations;
        attention(p.q_view(), cache, {{&id, 1}}, p.out_view(), options, extras, runtime);
        EXPECT_EQ(allocations, before) << threads;
    }
}

TEST(AttentionMemory, WorkspaceGrowsWithTokensNotTheirSquare) {
    const auto size = [](std::int64_t tokens) {
        Small<float> p(
            {.batch = 1, .heads = 1, .kv_heads = 1, .queries = tokens, .keys = tokens, .head_dim = 8, .value_dim = 8});
        return attention_workspace_size(p.q_view(), p.k_view(), p.v_view(), p.out_view()) +
               attention_backward_workspace_size(p.q_view(), p.k_view(), p.v_view(), p.d_out_view(), p.saved(),
                                                 p.gradients());
    };
    // From lengths on at which an item of work has reached its full size.
    EXPECT_LE(size(80000), size(8000) + 72000 * 2 * sizeof(float) + 1024);
}

TEST(AttentionMemory, PackedSequencesShareNoRoomForTheirSum) {
    const auto size = [](std::int64_t sequences) {
        std::vector<std::int64_t> starts;
        for (std::int64_t index = 0; index <= sequences; ++index) {
            starts.push_back(index * 512);
        }
        Small<BFloat16> p({.batch = 1,
                           .heads = 4,
                           .kv_heads = 1,
                           .queries = sequences * 512,
                           .keys = sequences * 512,
                           .head_dim = 16,
                           .value_dim = 16});
        AttentionOptions options;
        options.mask = Mask::packed(starts, starts);
        return attention_backward_workspace_size(p.q_view(), p.k_view(), p.v_view(), p.d_out_view(), p.saved(),
                                                 p.gradients(), options);
    };
    EXPECT_LE(size(64), size(8) + 56 * 512 * 4 * 2 * sizeof(float) + 1024);
}

/// Address space of which only the touched pages take memory.
struct Sparse {
    explicit Sparse(std::size_t size)
        : bytes(size),
          data(::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
    Sparse(const Sparse&) = delete;
    Sparse& operator=(const Sparse&) = delete;
    Sparse(Sparse&&) = delete;
    Sparse& operator=(Sparse&&) = delete;
    ~Sparse() { ::munmap(data, bytes); }
    std::size_t bytes;
    void* data;
};

TEST(AttentionMemory, OffsetsPass32Bits) {
#if defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "ThreadSanitizer's shadow of such mappings does not fit";
#endif
    Small<float> dense({.batch = 2, .heads = 2, .kv_heads = 2, .queries = 3, .keys = 3, .head_dim = 4, .value_dim = 4});
    AttentionOptions options;
    options.mask = Mask::causal(Align::top_left);
    dense.forward(options);
    dense.backward(options);
    // Batch strides of 2^31 and 2^32 elements and more, head and token strides that reach past them as well.
    for (const std::int64_t far : {(std::int64_t{1} << 31) + 5, (std::int64_t{1} << 32) + 7}) {
        const Shape4 strides{far, 1 << 12, (far - (1 << 14)) / 4, 1};
        const std::size_t elements = static_cast<std::size_t>(far * 2 + (1 << 16));
        std::vector<std::unique_ptr<Sparse>> memory;
        const auto place = [&](auto contiguous) {
            memory.push_back(std::make_unique<Sparse>(elements * sizeof(float)));
            EXPECT_NE(memory.back()->data, MAP_FAILED);
            auto sparse = view(static_cast<float*>(memory.back()->data), contiguous.shape, strides);
            support::write(sparse, support::read(contiguous));
            return sparse;
        };
        const auto q = place(dense.q_view());
        const auto k = place(dense.k_view());
        const auto v = place(dense.v_view());
        const auto d_out = place(dense.d_out_view());
        const auto out = place(dense.out_view());
        AttentionGradients gradients;
        gradients.dq = place(dense.q_view());
        gradients.dk = place(dense.k_view());
        gradients.dv = place(dense.v_view());
        AttentionSaved saved = dense.saved();
        saved.out = out;
        attention(q, k, v, out, options);
        attention_backward(q, k, v, d_out, saved, gradients, options);
        EXPECT_EQ(support::read(out), support::read(dense.out_view()));
        EXPECT_EQ(support::read(*gradients.dq), support::read(dense.dq_view()));
        EXPECT_EQ(support::read(*gradients.dk), support::read(dense.dk_view()));
        EXPECT_EQ(support::read(*gradients.dv), support::read(dense.dv_view()));
    }
}

}  // namespace
}  // namespace qkv
