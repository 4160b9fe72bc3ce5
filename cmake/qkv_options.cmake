# What every target of the project is compiled with.
add_library(qkv_options INTERFACE)
target_compile_features(qkv_options INTERFACE cxx_std_20)
target_compile_options(
  qkv_options
  INTERFACE -Wall
            -Wextra
            -Wpedantic
            -Wshadow
            -Wconversion
            -Wsign-conversion
            -Wold-style-cast
            -Wnon-virtual-dtor
            -Woverloaded-virtual
            # Products and sums round where the source says so: std::fma is the only fused operation.
            -ffp-contract=off
            # GCC 12 sees overlaps in std::string operator+ that are not there (GCC bug 105651).
            $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>
            $<$<BOOL:${QKV_WERROR}>:-Werror>)
if(QKV_SANITIZE)
  target_compile_options(qkv_options INTERFACE -fsanitize=${QKV_SANITIZE} -fno-sanitize-recover=all
                                               -fno-omit-frame-pointer)
  target_link_options(qkv_options INTERFACE -fsanitize=${QKV_SANITIZE})
endif()
