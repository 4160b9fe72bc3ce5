// The attention stages as modules, and the language model that they are for.
#pragma once

#include "qkv/nn/causal_attention.hpp"
#include "qkv/nn/cross_attention.hpp"
#include "qkv/nn/cross_entropy.hpp"
#include "qkv/nn/embedding.hpp"
#include "qkv/nn/feed_forward.hpp"
#include "qkv/nn/gpt.hpp"
#include "qkv/nn/layer_norm.hpp"
#include "qkv/nn/linear.hpp"
#include "qkv/nn/module.hpp"
#include "qkv/nn/multi_head_attention.hpp"
#include "qkv/nn/optimizer.hpp"
#include "qkv/nn/self_attention.hpp"
#include "qkv/nn/simple_attention.hpp"
#include "qkv/nn/transformer_block.hpp"
