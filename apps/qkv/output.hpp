// Where results go, and what the terminal on the other side can show.
#pragma once

#include <cstdint>
#include <string_view>

#include "qkv/explain.hpp"

namespace qkv::app {

/// Writes to standard output; throws Error(io) when that fails (a full disk, a closed pipe).
void write_output(std::string_view text);
/// Flushes standard output; throws Error(io) when anything written before did not arrive.
void finish_output();

enum class When : std::uint8_t { automatic, always, never };

/// Colours to use: none for pipes, NO_COLOR and TERM=dumb unless `when` insists; 24-bit or 256 as the terminal says.
[[nodiscard]] explain::Colour output_colour(When when);

/// Columns of the terminal on standard output, or $COLUMNS, or 80; at least 40.
[[nodiscard]] std::int64_t output_width();
/// Columns of the terminal behind a file descriptor, or 0 where there is none or it does not say.
[[nodiscard]] std::int64_t terminal_width(int descriptor);

/// On Ctrl-C, gives the terminal its own colours back and ends as an interrupted program does.
void restore_colours_on_interrupt();

}  // namespace qkv::app
