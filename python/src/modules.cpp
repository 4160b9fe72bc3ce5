// The stages of attention as modules, and what trains them. They keep the GIL: a module that trains remembers its last
// forward.
#include <nanobind/nanobind.h>

#include <string>
#include <utility>
#include <vector>

#include "array.hpp"
#include "bindings.hpp"
#include "define.hpp"
#include "qkv/nn.hpp"
#include "recipe.hpp"
#include "state.hpp"

namespace qkv::python {

namespace {

using Module = nn::BasicModule<float>;

/// A stage that remembers the arguments it was made with.
template <class Stage>
class Held : public Stage {
public:
    template <class... Argument>
    explicit Held(Recipe recipe, Argument&&... arguments)
        : Stage(std::forward<Argument>(arguments)...), recipe_(std::move(recipe)) {}
    [[nodiscard]] const Recipe& recipe() const noexcept { return recipe_; }

private:
    Recipe recipe_;
};

template <class Stage>
using Class = nb::class_<Held<Stage>, Module>;

/// An optimizer, which refers to the parameters of its module.
template <class Optimizer>
struct HeldOptimizer {
    nb::object module;
    Optimizer optimizer;
};

/// What forward may use besides its input; writes the trace into the caller's dict at the end.
class PassArguments {
public:
    PassArguments(Generator* generator, nb::handle trace) : trace_into_(trace) {
        if (!trace.is_none() && !nb::isinstance<nb::dict>(trace)) {
            raise(PyExc_TypeError, "trace is a ", Py_TYPE(trace.ptr())->tp_name, "; expected a dict or None");
        }
        pass_ = {generator, trace.is_none() ? nullptr : &trace_};
    }
    [[nodiscard]] const nn::Pass<float>& pass() const noexcept { return pass_; }
    [[nodiscard]] nb::object finish(const Tensor& output) const {
        for (const auto& [name, tensor] : trace_.entries()) {
            nb::borrow<nb::dict>(trace_into_)[nb::cast(name)] = to_array(tensor);
        }
        return to_array(output);
    }

private:
    nb::handle trace_into_;
    Trace trace_;
    nn::Pass<float> pass_;
};

constexpr const char* kForwardSignature =
    "def forward(self, x: object, generator: Generator | None = None, trace: dict[str, typing.Any] | None = None) "
    "-> typing.Any";
constexpr const char* kCallSignature =
    "def __call__(self, x: object, generator: Generator | None = None, trace: dict[str, typing.Any] | None = None) "
    "-> typing.Any";
constexpr const char* kBackwardSignature = "def backward(self, d_output: object) -> typing.Any";

/// __repr__ and __reduce__. What forward remembered and backward added up stays behind.
template <class Stage>
void define_module_copies(Class<Stage>& type) {
    type.def("__repr__", [](const Held<Stage>& self) { return self.recipe().text(); });
    type.def(
        "__reduce__",
        [](const Held<Stage>& self) {
            return reduced("load", self.recipe().pair(), to_dict(self.state_dict()), self.training());
        },
        nb::sig(kReduce));
}

/// forward, called too as `module(x)`, and backward of a stage with one input.
template <class Stage>
void define_passes(Class<Stage>& type, const char* shapes) {
    define_module_copies<Stage>(type);
    const auto forward = [](Held<Stage>& stage, nb::handle x, Generator* generator, nb::handle trace) {
        const PassArguments arguments(generator, trace);
        return arguments.finish(stage.forward(to_tensor<float>(x, "x"), arguments.pass()));
    };
    define(type, "forward", forward, nb::arg("x"), nb::arg("generator") = nb::none(), nb::arg("trace") = nb::none(),
           nb::sig(kForwardSignature), shapes);
    define(type, "__call__", forward, nb::arg("x"), nb::arg("generator") = nb::none(), nb::arg("trace") = nb::none(),
           nb::sig(kCallSignature), shapes);
    define(
        type, "backward",
        [](Held<Stage>& stage, nb::handle d_output) {
            return to_array(stage.backward(to_tensor<float>(d_output, "d_output")));
        },
        nb::arg("d_output"), nb::sig(kBackwardSignature),
        "d_output, shaped as forward's result -> the gradient of x, after a forward in training. Adds to gradients().");
}

void bind_module(nb::module_& module) {
    nb::class_<Module> type(
        module, "Module",
        "What the stages share. They compute in float32 (arrays of other float types are rounded to it)\n"
        "and carry parameters under the names of the usual PyTorch teaching classes.");
    type.def_prop_ro("training", &Module::training, "Whether the module trains, as a new one does.");
    define(
        type, "train", [](Module& self, bool on) { self.train(on); }, nb::arg("on") = true,
        nb::sig("def train(self, on: bool = True) -> None"), "In training, dropout is active and backward possible.");
    define(
        type, "eval", [](Module& self) { self.eval(); }, nb::sig("def eval(self) -> None"), "The opposite of train().");
    define(
        type, "state_dict", [](const Module& self) { return to_dict(self.state_dict()); },
        nb::sig("def state_dict(self) -> dict[str, typing.Any]"),
        "Parameters and buffers by name, copied, as PyTorch's state_dict().");
    define(
        type, "load_state_dict", [](Module& self, nb::handle state) { self.load_state_dict(to_state(state, "state")); },
        nb::arg("state"), nb::sig("def load_state_dict(self, state: collections.abc.Mapping[str, object]) -> None"),
        "Replaces all parameters. Strict: a missing or unknown name or another shape raises ValueError, and then\n"
        "nothing has changed. torch.nn.MultiheadAttention's loads into the classes with many heads.");
    define(
        type, "gradients", [](const Module& self) { return to_dict(self.gradients()); },
        nb::sig("def gradients(self) -> dict[str, typing.Any]"),
        "What backward has added up, by parameter name; those that no backward has reached are absent.");
    define(
        type, "zero_gradients", [](Module& self) { self.zero_gradients(); },
        nb::sig("def zero_gradients(self) -> None"), "Forgets all gradients.");
}

void bind_simple(nb::module_& module) {
    using Stage = nn::SimpleSelfAttention;
    const auto normalise = [](const std::string& name) {
        if (name == "sum") {
            return nn::Normalise::sum;
        }
        if (name == "naive_softmax") {
            return nn::Normalise::naive_softmax;
        }
        if (name == "softmax") {
            return nn::Normalise::softmax;
        }
        raise(PyExc_ValueError, "normalise is '", name, "'; expected 'softmax', 'naive_softmax' or 'sum'");
    };
    const auto forward = [](const Held<Stage>& stage, nb::handle x, nb::handle trace) {
        const PassArguments arguments(nullptr, trace);
        return arguments.finish(stage.forward(to_tensor<float>(x, "x"), arguments.pass()));
    };
    constexpr const char* kShapes = "x [tokens, dim] or [batch, tokens, dim] -> the same shape.";
    Class<Stage> type(module, "SimpleSelfAttention",
                      "Attention without weights: every token vector is its own query, key and value.");
    define_module_copies<Stage>(type);
    define(
        type, "__init__",
        [normalise](Held<Stage>* self, const std::string& how) {
            new (self) Held<Stage>(Recipe{"nn.SimpleSelfAttention", {{"normalise", nb::cast(how)}}}, normalise(how));
        },
        nb::arg("normalise") = "softmax",
        nb::sig("def __init__(self, normalise: typing.Literal['softmax', 'naive_softmax', 'sum'] = 'softmax') "
                "-> None"),
        "normalise: how a row of scores becomes a row of weights that sums to one.");
    define(type, "forward", forward, nb::arg("x"), nb::arg("trace") = nb::none(),
           nb::sig("def forward(self, x: object, trace: dict[str, typing.Any] | None = None) -> typing.Any"), kShapes);
    define(type, "__call__", forward, nb::arg("x"), nb::arg("trace") = nb::none(),
           nb::sig("def __call__(self, x: object, trace: dict[str, typing.Any] | None = None) -> typing.Any"), kShapes);
    define(
        type, "backward",
        [](const Held<Stage>& stage, nb::handle x, nb::handle d_context) {
            return to_array(stage.backward(to_tensor<float>(x, "x"), to_tensor<float>(d_context, "d_context")));
        },
        nb::arg("x"), nb::arg("d_context"), nb::sig("def backward(self, x: object, d_context: object) -> typing.Any"),
        "d_context, shaped as x -> the gradient of x.");
}

/// The generator to draw parameters from: the given one, or a new one with the default seed.
template <class Stage, class StageOptions>
void construct(Held<Stage>* self, const StageOptions& options, Generator* generator, const Recipe& recipe) {
    Generator own;
    new (self) Held<Stage>(recipe, options, generator != nullptr ? *generator : own);
}

void bind_single_heads(nb::module_& module) {
    Class<nn::SelfAttention> self(module, "SelfAttention",
                                  "softmax(Q Kᵀ / √d_out) V with Q = x W_query, K = x W_key, V = x W_value.");
    define(
        self, "__init__",
        [](Held<nn::SelfAttention>* stage, std::int64_t d_in, std::int64_t d_out, const std::string& init,
           bool qkv_bias, Generator* generator) {
            if (init != "linear" && init != "uniform") {
                raise(PyExc_ValueError, "init is '", init, "'; expected 'linear' or 'uniform'");
            }
            construct(stage,
                      nn::SelfAttentionOptions{d_in, d_out, init == "linear" ? nn::Init::linear : nn::Init::uniform,
                                               qkv_bias},
                      generator,
                      {"nn.SelfAttention",
                       {{"d_in", nb::cast(d_in)},
                        {"d_out", nb::cast(d_out)},
                        {"init", nb::cast(init)},
                        {"qkv_bias", nb::cast(qkv_bias)}}});
        },
        nb::arg("d_in"), nb::arg("d_out"), nb::arg("init") = "linear", nb::arg("qkv_bias") = false,
        nb::arg("generator") = nb::none(),
        nb::sig("def __init__(self, d_in: int, d_out: int, init: typing.Literal['linear', 'uniform'] = 'linear', "
                "qkv_bias: bool = False, generator: Generator | None = None) -> None"),
        "init: torch.nn.Linear layers, or raw matrices drawn with rand.");
    define_passes<nn::SelfAttention>(self, "x [tokens, d_in] or [batch, tokens, d_in] -> [.., tokens, d_out].");

    Class<nn::CausalAttention> causal(module, "CausalAttention",
                                      "One causal head, query i sees keys 0 to i, with dropout.");
    define(
        causal, "__init__",
        [](Held<nn::CausalAttention>* stage, std::int64_t d_in, std::int64_t d_out, std::int64_t context_length,
           double dropout, bool qkv_bias, Generator* generator) {
            construct(stage, nn::CausalAttentionOptions{d_in, d_out, context_length, dropout, qkv_bias}, generator,
                      {"nn.CausalAttention",
                       {{"d_in", nb::cast(d_in)},
                        {"d_out", nb::cast(d_out)},
                        {"context_length", nb::cast(context_length)},
                        {"dropout", nb::cast(dropout)},
                        {"qkv_bias", nb::cast(qkv_bias)}}});
        },
        nb::arg("d_in"), nb::arg("d_out"), nb::arg("context_length"), nb::arg("dropout") = 0.0,
        nb::arg("qkv_bias") = false, nb::arg("generator") = nb::none(),
        nb::sig("def __init__(self, d_in: int, d_out: int, context_length: int, dropout: float = 0.0, "
                "qkv_bias: bool = False, generator: Generator | None = None) -> None"),
        "context_length: the longest sequence.");
    define_passes<nn::CausalAttention>(causal, "x [tokens, d_in] or [batch, tokens, d_in] -> [.., tokens, d_out].");
}

template <class Stage>
void bind_many_heads(nb::module_& module, const char* name, const char* maker, const char* doc, const char* shapes) {
    Class<Stage> type(module, name, doc);
    define(
        type, "__init__",
        [maker](Held<Stage>* stage, std::int64_t d_in, std::int64_t d_out, std::int64_t context_length, double dropout,
                std::int64_t num_heads, bool qkv_bias, std::int64_t num_kv_heads, Generator* generator) {
            nn::MultiHeadAttentionOptions options;
            options.d_in = d_in;
            options.d_out = d_out;
            options.context_length = context_length;
            options.dropout = dropout;
            options.num_heads = num_heads;
            options.qkv_bias = qkv_bias;
            options.num_kv_heads = num_kv_heads;
            construct(stage, options, generator,
                      {maker,
                       {{"d_in", nb::cast(d_in)},
                        {"d_out", nb::cast(d_out)},
                        {"context_length", nb::cast(context_length)},
                        {"dropout", nb::cast(dropout)},
                        {"num_heads", nb::cast(num_heads)},
                        {"qkv_bias", nb::cast(qkv_bias)},
                        {"num_kv_heads", nb::cast(num_kv_heads)}}});
        },
        nb::arg("d_in"), nb::arg("d_out"), nb::arg("context_length"), nb::arg("dropout") = 0.0,
        nb::arg("num_heads") = 1, nb::arg("qkv_bias") = false, nb::arg("num_kv_heads") = 0,
        nb::arg("generator") = nb::none(),
        nb::sig("def __init__(self, d_in: int, d_out: int, context_length: int, dropout: float = 0.0, "
                "num_heads: int = 1, qkv_bias: bool = False, num_kv_heads: int = 0, "
                "generator: Generator | None = None) -> None"),
        "num_kv_heads: key and value heads, each shared by num_heads / num_kv_heads query heads; 0: num_heads.");
    define_passes<Stage>(type, shapes);
}

void bind_cross(nb::module_& module) {
    using Stage = nn::CrossAttention;
    const auto forward = [](Held<Stage>& stage, nb::handle queries, nb::handle source, nb::handle source_mask,
                            Generator* generator, nb::handle trace) {
        std::vector<bool> mask;
        if (!source_mask.is_none()) {
            mask = to_flags(source_mask, "source_mask");
        }
        const PassArguments arguments(generator, trace);
        return arguments.finish(stage.forward(to_tensor<float>(queries, "queries"), to_tensor<float>(source, "source"),
                                              arguments.pass(), mask));
    };
    constexpr const char* kShapes =
        "queries [tokens, d_query], source [source tokens, d_source], or both with a leading batch axis\n"
        "-> [.., tokens, d_out]. source_mask: bool, one entry per source token of every sequence, True = may be "
        "attended\n"
        "to.";
    Class<Stage> type(module, "CrossAttention", "Queries from one sequence, keys and values from another.");
    define_module_copies<Stage>(type);
    define(
        type, "__init__",
        [](Held<Stage>* stage, std::int64_t d_query, std::int64_t d_source, std::int64_t d_out, double dropout,
           std::int64_t num_heads, bool qkv_bias, std::int64_t num_kv_heads, Generator* generator) {
            nn::CrossAttentionOptions options;
            options.d_query = d_query;
            options.d_source = d_source;
            options.d_out = d_out;
            options.dropout = dropout;
            options.num_heads = num_heads;
            options.qkv_bias = qkv_bias;
            options.num_kv_heads = num_kv_heads;
            construct(stage, options, generator,
                      {"nn.CrossAttention",
                       {{"d_query", nb::cast(d_query)},
                        {"d_source", nb::cast(d_source)},
                        {"d_out", nb::cast(d_out)},
                        {"dropout", nb::cast(dropout)},
                        {"num_heads", nb::cast(num_heads)},
                        {"qkv_bias", nb::cast(qkv_bias)},
                        {"num_kv_heads", nb::cast(num_kv_heads)}}});
        },
        nb::arg("d_query"), nb::arg("d_source"), nb::arg("d_out"), nb::arg("dropout") = 0.0, nb::arg("num_heads") = 1,
        nb::arg("qkv_bias") = false, nb::arg("num_kv_heads") = 0, nb::arg("generator") = nb::none(),
        nb::sig("def __init__(self, d_query: int, d_source: int, d_out: int, dropout: float = 0.0, "
                "num_heads: int = 1, qkv_bias: bool = False, num_kv_heads: int = 0, "
                "generator: Generator | None = None) -> None"),
        "num_kv_heads: as in MultiHeadAttention.");
    define(type, "forward", forward, nb::arg("queries"), nb::arg("source"), nb::arg("source_mask") = nb::none(),
           nb::arg("generator") = nb::none(), nb::arg("trace") = nb::none(),
           nb::sig("def forward(self, queries: object, source: object, source_mask: object | None = None, "
                   "generator: Generator | None = None, trace: dict[str, typing.Any] | None = None) -> typing.Any"),
           kShapes);
    define(type, "__call__", forward, nb::arg("queries"), nb::arg("source"), nb::arg("source_mask") = nb::none(),
           nb::arg("generator") = nb::none(), nb::arg("trace") = nb::none(),
           nb::sig("def __call__(self, queries: object, source: object, source_mask: object | None = None, "
                   "generator: Generator | None = None, trace: dict[str, typing.Any] | None = None) -> typing.Any"),
           kShapes);
    define(
        type, "backward",
        [](Held<Stage>& stage, nb::handle d_output) {
            const Stage::InputGradients gradients = stage.backward(to_tensor<float>(d_output, "d_output"));
            return nb::make_tuple(to_array(gradients.queries), to_array(gradients.source));
        },
        nb::arg("d_output"), nb::sig("def backward(self, d_output: object) -> tuple[typing.Any, typing.Any]"),
        "d_output, shaped as forward's result -> (gradient of queries, gradient of source).");
}

template <class Optimizer>
void define_steps(nb::class_<HeldOptimizer<Optimizer>>& type, const char* uncopied) {
    using Held = HeldOptimizer<Optimizer>;
    define(
        type, "step", [](Held& self) { self.optimizer.step(); }, nb::sig("def step(self) -> None"),
        "One step over all parameters that have a gradient.");
    define(
        type, "set_lr", [](Held& self, double lr) { self.optimizer.set_lr(lr); }, nb::arg("lr"),
        nb::sig("def set_lr(self, lr: float) -> None"), "Another learning rate from the next step on.");
    refuse_copies(type, uncopied);
}

void bind_optimizers(nb::module_& module) {
    using HeldSgd = HeldOptimizer<nn::Sgd<float>>;
    nb::class_<HeldSgd> sgd(module, "Sgd", "Stochastic gradient descent, as torch.optim.SGD.");
    define(
        sgd, "__init__",
        [](HeldSgd* self, Module& trained, double lr, double momentum, double weight_decay) {
            new (self) HeldSgd{nb::find(trained), {trained.parameters(), {lr, momentum, weight_decay}}};
        },
        nb::arg("module"), nb::arg("lr") = 1e-3, nb::arg("momentum") = 0.0, nb::arg("weight_decay") = 0.0,
        nb::sig("def __init__(self, module: Module, lr: float = 0.001, momentum: float = 0.0, "
                "weight_decay: float = 0.0) -> None"),
        "Trains all parameters of `module`.");
    define_steps(sgd, "a qkv.nn.Sgd cannot be copied or pickled: it trains one module's parameters");
    using HeldAdamW = HeldOptimizer<nn::AdamW<float>>;
    nb::class_<HeldAdamW> adamw(module, "AdamW", "AdamW (Loshchilov & Hutter 2019), as torch.optim.AdamW.");
    define(
        adamw, "__init__",
        [](HeldAdamW* self, Module& trained, double lr, double beta1, double beta2, double eps, double weight_decay) {
            new (self) HeldAdamW{nb::find(trained), {trained.parameters(), {lr, beta1, beta2, eps, weight_decay}}};
        },
        nb::arg("module"), nb::arg("lr") = 1e-3, nb::arg("beta1") = 0.9, nb::arg("beta2") = 0.999,
        nb::arg("eps") = 1e-8, nb::arg("weight_decay") = 0.01,
        nb::sig("def __init__(self, module: Module, lr: float = 0.001, beta1: float = 0.9, beta2: float = 0.999, "
                "eps: float = 1e-08, weight_decay: float = 0.01) -> None"),
        "Trains all parameters of `module`.");
    define_steps(adamw, "a qkv.nn.AdamW cannot be copied or pickled: it trains one module's parameters");
    define(
        module, "clip_gradient_norm",
        [](Module& trained, double max_norm) { return nn::clip_gradient_norm(trained.parameters(), max_norm); },
        nb::arg("module"), nb::arg("max_norm"),
        nb::sig("def clip_gradient_norm(module: Module, max_norm: float) -> float"),
        "Scales all gradients so that their joint 2-norm is at most max_norm; returns the norm before.");
}

}  // namespace

void bind_modules(nb::module_& module) {
    bind_module(module);
    bind_simple(module);
    bind_single_heads(module);
    bind_many_heads<nn::MultiHeadAttentionWrapper>(
        module, "MultiHeadAttentionWrapper", "nn.MultiHeadAttentionWrapper",
        "Several causal heads side by side, their contexts concatenated.",
        "x [tokens, d_in] or [batch, tokens, d_in] -> [.., tokens, num_heads · d_out].");
    bind_many_heads<nn::MultiHeadAttention>(
        module, "MultiHeadAttention", "nn.MultiHeadAttention",
        "Causal multi-head attention: one projection, split into heads, joined and projected once more.",
        "x [tokens, d_in] or [batch, tokens, d_in] -> [.., tokens, d_out].");
    bind_cross(module);
    bind_optimizers(module);
}

}  // namespace qkv::python
