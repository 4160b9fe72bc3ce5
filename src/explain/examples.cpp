#include "explain/examples.hpp"

#include <algorithm>

namespace qkv::explain {

const Example* find_example(std::string_view name) {
    static const std::vector<Example> examples{
        {"journey",
         {"Your", "journey", "starts", "with", "one", "step"},
         Tensor({6, 3}, {.43F, .15F, .89F, .55F, .87F, .66F, .57F, .85F, .64F, .22F, .58F, .33F, .77F, .25F, .10F, .05F,
                         .80F, .55F}),
         2},
        {"sun", {"Hello", "shiny", "sun"}, Tensor({3, 3}, {.34F, .22F, .54F, .53F, .34F, .98F, .29F, .54F, .93F}), 2},
        // The "Sample tokens" that the notebook 3-model-architecture/3-attention.ipynb of Arjun-G-Ravi's
        // everything-about-modern-LLMs (on GitHub) prints from x = rand(10, 4); its seed is not known.
        {"notebook", numbered_tokens(10),
         Tensor({10, 4}, {.4049F, .4418F, .0380F, .5829F, .3825F, .6892F, .9744F, .7100F, .8483F, .2261F,
                          .2593F, .4272F, .7662F, .3433F, .2613F, .9817F, .0059F, .3611F, .2559F, .2645F,
                          .9035F, .3111F, .7183F, .4819F, .5543F, .2404F, .0581F, .7029F, .2210F, .2754F,
                          .0144F, .5870F, .4300F, .4448F, .2364F, .0915F, .3387F, .7015F, .5927F, .7368F}),
         4},
    };
    const auto found = std::ranges::find(examples, name, &Example::name);
    return found != examples.end() ? &*found : nullptr;
}

const std::vector<std::string>& example_names() {
    static const std::vector<std::string> names{"journey", "sun", "notebook", "translate"};
    return names;
}

}  // namespace qkv::explain
