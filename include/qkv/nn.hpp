// The attention stages as modules.
#pragma once

#include "qkv/nn/causal_attention.hpp"
#include "qkv/nn/cross_attention.hpp"
#include "qkv/nn/linear.hpp"
#include "qkv/nn/module.hpp"
#include "qkv/nn/multi_head_attention.hpp"
#include "qkv/nn/optimizer.hpp"
#include "qkv/nn/self_attention.hpp"
#include "qkv/nn/simple_attention.hpp"
