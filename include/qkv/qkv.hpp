// Everything of qkv.
#pragma once

#include "qkv/attention.hpp"
#include "qkv/error.hpp"
#include "qkv/instruction_set.hpp"
#include "qkv/io.hpp"
#include "qkv/kv_cache.hpp"
#include "qkv/models.hpp"
#include "qkv/nn.hpp"
#include "qkv/random.hpp"
#include "qkv/rope.hpp"
#include "qkv/tensor.hpp"
#include "qkv/text.hpp"
#include "qkv/trace.hpp"
