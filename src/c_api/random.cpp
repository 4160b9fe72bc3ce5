#include "c_api/boundary.hpp"
#include "c_api/handles.hpp"

namespace qkv::c_api {

namespace {

template <class T>
std::span<T> to_values(void* values, std::int64_t count) {
    if (count < 0) {
        fail(ErrorCode::invalid_argument, "count is ", count, "; expected 0 or more");
    }
    if (reinterpret_cast<std::uintptr_t>(values) % alignof(T) != 0) {
        fail(ErrorCode::invalid_argument, "values is not aligned to its elements of ", sizeof(T), " bytes");
    }
    if (count > 0) {
        (void)required(static_cast<T*>(values), "values");
    }
    return {static_cast<T*>(values), static_cast<std::size_t>(count)};
}

/// fill(generator, values) for values of the type that `dtype` names.
template <class Fill>
qkv_status draw(qkv_generator* generator, qkv_dtype dtype, void* values, std::int64_t count,
                const Fill& fill) noexcept {
    return guarded([&] {
        Generator& source = required(generator, "generator").generator;
        switch (dtype) {
            case QKV_F32:
                return fill(source, to_values<float>(values, count));
            case QKV_F64:
                return fill(source, to_values<double>(values, count));
            default:
                fail(ErrorCode::unsupported, "dtype is ", dtype, "; expected ", QKV_F32, " (f32) or ", QKV_F64,
                     " (f64)");
        }
    });
}

}  // namespace

}  // namespace qkv::c_api

using namespace qkv::c_api;
using qkv::Generator;

extern "C" {

qkv_status qkv_generator_create(uint64_t seed, qkv_generator** generator) {
    return create(generator, "generator", [&] { return new qkv_generator{Generator(seed)}; });
}

qkv_status qkv_generator_copy(const qkv_generator* generator, qkv_generator** copy) {
    return create(copy, "copy", [&] { return new qkv_generator(required(generator, "generator")); });
}

void qkv_generator_destroy(qkv_generator* generator) { delete generator; }

qkv_status qkv_generator_seed(qkv_generator* generator, uint64_t seed) {
    return guarded([&] { required(generator, "generator").generator.manual_seed(seed); });
}

qkv_status qkv_generator_random64(qkv_generator* generator, uint64_t* bits) {
    return guarded([&] {
        uint64_t& drawn = required(bits, "bits");
        drawn = required(generator, "generator").generator.random64();
    });
}

qkv_status qkv_generator_uniform(qkv_generator* generator, qkv_dtype dtype, void* values, int64_t count, double from,
                                 double to) {
    return draw(generator, dtype, values, count,
                [&](Generator& source, auto span) { source.uniform_(span, from, to); });
}

qkv_status qkv_generator_normal(qkv_generator* generator, qkv_dtype dtype, void* values, int64_t count, double mean,
                                double std) {
    return draw(generator, dtype, values, count,
                [&](Generator& source, auto span) { source.normal_(span, mean, std); });
}

qkv_status qkv_generator_bernoulli(qkv_generator* generator, qkv_dtype dtype, void* values, int64_t count,
                                   double probability) {
    return draw(generator, dtype, values, count,
                [&](Generator& source, auto span) { source.bernoulli_(span, probability); });
}

}  // extern "C"
