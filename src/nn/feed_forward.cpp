#include "qkv/nn/feed_forward.hpp"

#include <utility>

#include "core/check.hpp"
#include "nn/remember.hpp"
#include "nn/rows.hpp"

namespace qkv::nn {

template <class T>
BasicTensor<T> gelu(const BasicTensor<T>& x, Gelu form, const Runtime& runtime) {
    const kernels::Layers<T>& kernels = kernels::layers<T>(runtime.instruction_set());
    const auto apply = form == Gelu::erf ? kernels.gelu_erf : kernels.gelu_tanh;
    BasicTensor<T> y = BasicTensor<T>::unwritten(x.shape());
    for_runs(runtime, x.numel(), 1,
             [&](std::int64_t begin, std::int64_t end) { apply(y.data() + begin, x.data() + begin, end - begin); });
    return y;
}

template <class T>
BasicTensor<T> gelu_backward(const BasicTensor<T>& x, BasicTensor<T> d_y, Gelu form, const Runtime& runtime) {
    check_gradient(d_y, x.shape());
    const kernels::Layers<T>& kernels = kernels::layers<T>(runtime.instruction_set());
    const auto apply = form == Gelu::erf ? kernels.gelu_erf_backward : kernels.gelu_tanh_backward;
    for_runs(runtime, x.numel(), 1,
             [&](std::int64_t begin, std::int64_t end) { apply(d_y.data() + begin, x.data() + begin, end - begin); });
    return d_y;
}

template <class T>
struct BasicFeedForward<T>::Kept {
    BasicTensor<T> x;       // [..., emb_dim]
    BasicTensor<T> hidden;  // [..., 4 · emb_dim], before the GELU
    BasicTensor<T> active;  // the same after it
    const Runtime* runtime = &Runtime::serial();
};

template <class T>
BasicFeedForward<T>::BasicFeedForward(std::int64_t emb_dim, Gelu form, Generator& generator)
    : form_(form),
      widen_(emb_dim, checked_multiply(4, emb_dim, "the feed-forward's width"), true, generator),
      narrow_(widen_.d_out(), emb_dim, true, generator) {}

template <class T>
BasicTensor<T> BasicFeedForward<T>::forward(const BasicTensor<T>& x, const Pass<T>& pass) const {
    return narrow_.forward(gelu(widen_.forward(x, *pass.runtime), form_, *pass.runtime), *pass.runtime);
}

template <class T>
BasicTensor<T> BasicFeedForward<T>::forward(BasicTensor<T> x, const Pass<T>& pass) {
    if (!this->training()) {
        return std::as_const(*this).forward(x, pass);
    }
    const Runtime& runtime = *pass.runtime;
    BasicTensor<T> hidden = widen_.forward(x, runtime);
    BasicTensor<T> active = gelu(hidden, form_, runtime);
    BasicTensor<T> y = narrow_.forward(active, runtime);
    kept_ = std::make_shared<Kept>(Kept{std::move(x), std::move(hidden), std::move(active), &runtime});
    return y;
}

template <class T>
BasicTensor<T> BasicFeedForward<T>::backward(const BasicTensor<T>& d_output) {
    const Kept& kept = recall(kept_);
    check_gradient(d_output, kept.x.shape());
    const Runtime& runtime = *kept.runtime;
    BasicTensor<T> d_hidden = narrow_.backward(kept.active, d_output, runtime);
    d_hidden = gelu_backward(kept.hidden, std::move(d_hidden), form_, runtime);
    return widen_.backward(kept.x, d_hidden, runtime);
}

template <class T>
void BasicFeedForward<T>::visit_parameters(const typename BasicModule<T>::Visitor& visit) {
    widen_.visit_parameters("layers.0", visit);
    narrow_.visit_parameters("layers.2", visit);
}

#define QKV_INSTANTIATE(T)                                                                              \
    template BasicTensor<T> gelu(const BasicTensor<T>&, Gelu, const Runtime&);                          \
    template BasicTensor<T> gelu_backward(const BasicTensor<T>&, BasicTensor<T>, Gelu, const Runtime&); \
    template class BasicFeedForward<T>;
QKV_INSTANTIATE(float)
QKV_INSTANTIATE(double)
#undef QKV_INSTANTIATE

}  // namespace qkv::nn
