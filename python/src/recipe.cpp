#include "recipe.hpp"

#include "operand.hpp"
#include "raise.hpp"

namespace qkv::python {

namespace {

constexpr std::size_t kLongest = 60;

std::string shown(const nb::object& value) {
    const bool plain = value.is_none() || nb::isinstance<nb::str>(value) || nb::isinstance<nb::int_>(value) ||
                       nb::isinstance<nb::float_>(value) || nb::isinstance<nb::dict>(value);
    if (plain) {
        return nb::repr(value).c_str();
    }
    if (nb::isinstance<nb::tuple>(value)) {
        const std::string text = nb::repr(value).c_str();
        return text.size() <= kLongest ? text : concat("<", nb::len(value), " numbers>");
    }
    const Operand array(value, "array");
    return concat("<", array.type_name(), " ", array.shape_text(), ">");
}

}  // namespace

std::string Recipe::text() const {
    std::string text = concat("qkv.", maker, "(");
    for (const auto& [name, value] : arguments) {
        text += concat(text.back() == '(' ? "" : ", ", name, "=", shown(value));
    }
    return text + ")";
}

nb::tuple Recipe::pair() const {
    nb::dict named;
    for (const auto& [name, value] : arguments) {
        named[name] = value;
    }
    return nb::make_tuple(maker, named);
}

}  // namespace qkv::python
