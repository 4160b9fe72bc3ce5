// Language models: data, training, files, generation.
#pragma once

#include "qkv/models/data.hpp"
#include "qkv/models/generation.hpp"
#include "qkv/models/language_model.hpp"
#include "qkv/models/loss_curve.hpp"
#include "qkv/models/trainer.hpp"
