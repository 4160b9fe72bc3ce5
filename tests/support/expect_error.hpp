// EXPECT_ERROR(statement, code, part of the message)
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "qkv/error.hpp"

#define EXPECT_ERROR(statement, expected_code, message_part)                                    \
    EXPECT_THAT([&] { (void)(statement); },                                                     \
                ::testing::Throws<::qkv::Error>(                                                \
                    ::testing::AllOf(::testing::Property(&::qkv::Error::code, (expected_code)), \
                                     ::testing::Property(&::qkv::Error::what, ::testing::HasSubstr(message_part)))))
