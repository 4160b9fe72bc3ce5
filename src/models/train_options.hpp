// The options of training, checked.
#pragma once

#include "qkv/models/trainer.hpp"

namespace qkv::models {

/// `options` as they are. Throws Error(invalid_argument) naming the first that is out of its range.
[[nodiscard]] TrainOptions checked(const TrainOptions& options);

}  // namespace qkv::models
