# find_package(qkv), pkg-config, and the program.
include(CMakePackageConfigHelpers)

install(TARGETS qkv EXPORT qkv_targets FILE_SET HEADERS)
install(EXPORT qkv_targets NAMESPACE qkv:: FILE qkv-targets.cmake DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/qkv)
configure_package_config_file(cmake/qkv-config.cmake.in qkv-config.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/qkv)
write_basic_package_version_file(qkv-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/qkv-config.cmake" "${CMAKE_CURRENT_BINARY_DIR}/qkv-config-version.cmake"
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/qkv)

# From the .pc file up to the prefix, so that an installed tree may be moved.
file(RELATIVE_PATH QKV_PC_TO_PREFIX "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
configure_file(cmake/qkv.pc.in qkv.pc @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/qkv.pc" DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

if(TARGET qkv_program)
  install(TARGETS qkv_program)
endif()
