#include "qkv/nn/cross_entropy.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "core/check.hpp"
#include "nn/rows.hpp"

namespace qkv::nn {

namespace {

/// How many targets count. Throws as cross_entropy.
template <class T>
std::int64_t checked_count(const BasicTensor<T>& logits, std::span<const std::int64_t> targets,
                           const CrossEntropyOptions& options) {
    if (logits.rank() < 1 || logits.size(-1) < 1) {
        fail(ErrorCode::shape_mismatch, "logits have shape ", to_string(logits.shape()), "; expected [..., classes]");
    }
    const std::int64_t classes = logits.size(-1);
    if (static_cast<std::int64_t>(targets.size()) != logits.numel() / classes) {
        fail(ErrorCode::shape_mismatch, targets.size(), " targets for logits of shape ", to_string(logits.shape()),
             "; expected ", logits.numel() / classes);
    }
    std::int64_t count = 0;
    for (std::size_t place = 0; place < targets.size(); ++place) {
        if (targets[place] == options.ignore_index) {
            continue;
        }
        if (targets[place] < 0 || targets[place] >= classes) {
            fail(ErrorCode::out_of_range, "target ", targets[place], " at place ", place, "; expected 0 to ",
                 classes - 1, ", or ignore_index ", options.ignore_index);
        }
        ++count;
    }
    return count;
}

/// The mean loss; visit(row, its moments, its loss) for each row that counts, and skip(row) for the others.
template <class T, class Visit, class Skip>
double mean_loss(const BasicTensor<T>& logits, std::span<const std::int64_t> targets,
                 const CrossEntropyOptions& options, std::int64_t count, const Runtime& runtime, const Visit& visit,
                 const Skip& skip) {
    const auto moments_of = kernels::layers<T>(runtime.instruction_set()).softmax_moments;
    const std::int64_t classes = logits.size(-1);
    std::vector<double> losses(targets.size());
    for_runs(runtime, static_cast<std::int64_t>(targets.size()), classes, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
            const std::int64_t target = targets[static_cast<std::size_t>(row)];
            if (target == options.ignore_index) {
                skip(row);
                continue;
            }
            const T* const of_row = logits.data() + row * classes;
            const kernels::SoftmaxMoments<T> moments = moments_of(of_row, classes);
            const double loss =
                std::log(moments.sum) - (static_cast<double>(of_row[target]) - static_cast<double>(moments.maximum));
            losses[static_cast<std::size_t>(row)] = loss;
            visit(row, moments, loss);
        }
    });
    double sum = 0;
    for (const double loss : losses) {
        sum += loss;
    }
    return count == 0 ? std::numeric_limits<double>::quiet_NaN() : sum / static_cast<double>(count);
}

}  // namespace

template <class T>
double cross_entropy(const BasicTensor<T>& logits, std::span<const std::int64_t> targets,
                     const CrossEntropyOptions& options, const Runtime& runtime) {
    const std::int64_t count = checked_count(logits, targets, options);
    return mean_loss(
        logits, targets, options, count, runtime, [](std::int64_t, const kernels::SoftmaxMoments<T>&, double) {},
        [](std::int64_t) {});
}

template <class T>
CrossEntropy<T> cross_entropy_backward(BasicTensor<T> logits, std::span<const std::int64_t> targets,
                                       const CrossEntropyOptions& options, const Runtime& runtime) {
    const std::int64_t count = checked_count(logits, targets, options);
    const std::int64_t classes = logits.size(-1);
    const double factor = options.scale / static_cast<double>(count);
    const auto softmax = kernels::layers<T>(runtime.instruction_set()).softmax;
    const double loss = mean_loss(
        logits, targets, options, count, runtime,
        [&](std::int64_t row, const kernels::SoftmaxMoments<T>& moments, double row_loss) {
            T* const of_row = logits.data() + row * classes;
            softmax(of_row, classes, moments, factor);
            // The target's weight is exp(−loss), and its gradient that minus 1.
            of_row[targets[static_cast<std::size_t>(row)]] = static_cast<T>(std::expm1(-row_loss) * factor);
        },
        [&](std::int64_t row) { std::fill_n(logits.data() + row * classes, classes, T{0}); });
    return {loss, std::move(logits)};
}

#define QKV_INSTANTIATE(T)                                                                                          \
    template double cross_entropy(const BasicTensor<T>&, std::span<const std::int64_t>, const CrossEntropyOptions&, \
                                  const Runtime&);                                                                  \
    template CrossEntropy<T> cross_entropy_backward(BasicTensor<T>, std::span<const std::int64_t>,                  \
                                                    const CrossEntropyOptions&, const Runtime&);
QKV_INSTANTIATE(float)
QKV_INSTANTIATE(double)
#undef QKV_INSTANTIATE

}  // namespace qkv::nn
