# Everything that the Python package is built from, looked for at once, so that one message names all that is missing.
find_package(PkgConfig QUIET)
find_package(CLI11 QUIET)
find_package(fmt QUIET)
find_package(nlohmann_json 3.11 QUIET)
if(PkgConfig_FOUND)
  pkg_check_modules(utf8proc QUIET IMPORTED_TARGET libutf8proc)
endif()

set(missing "")
foreach(need "PkgConfig=pkg-config" "CLI11=libcli11-dev" "fmt=libfmt-dev" "nlohmann_json=nlohmann-json3-dev"
             "utf8proc=libutf8proc-dev")
  string(REGEX REPLACE "=.*" "" found "${need}")
  string(REGEX REPLACE ".*=" "" package "${need}")
  if(NOT ${found}_FOUND)
    list(APPEND missing "${package}")
  endif()
endforeach()
if(missing)
  list(JOIN missing " " missing)
  message(FATAL_ERROR "The qkv package is built from source, and these Debian packages are missing: ${missing}.\n"
                      "Run ./dev build once (it installs them), or: apt-get install ${missing}")
endif()
