// The page as text: what stands in it, and that no token gets out of its place. The browser tests are in test_page.py.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "explain/render_html.hpp"
#include "qkv/error.hpp"

namespace {

using qkv::explain::render_html;
using ::testing::HasSubstr;
using ::testing::Not;

std::string document_with(const std::string& token) {
    return R"({"version":1,"tokens":[")" + token +
           R"(","b"],"stages":[{"stage":"simple","tensors":{)"
           R"("inputs":{"shape":[2,1],"data":[1,2]},)"
           R"("weights":{"shape":[2,2],"data":[0.25,0.75,0.125,0.875]}}}]})";
}

std::string data_block(const std::string& html) {
    const std::string open = R"(id="qkv-data">)";
    const auto begin = html.find(open) + open.size();
    return html.substr(begin, html.find("</script>", begin) - begin);
}

TEST(RenderHtml, CarriesTheDocumentUnchangedWhereNothingNeedsEscaping) {
    EXPECT_EQ(data_block(render_html(document_with("a"))), document_with("a"));
}

TEST(RenderHtml, NoTokenEndsTheDataBlock) {
    const std::string html = render_html(document_with("</script><img src=x onerror=alert(1)>"));
    EXPECT_THAT(data_block(html), HasSubstr("\\u003c/script>\\u003cimg"));
    EXPECT_THAT(html, Not(HasSubstr("<img")));
    EXPECT_THAT(html, HasSubstr("&lt;/script&gt;&lt;img"));
}

TEST(RenderHtml, EscapesLineSeparators) {
    const std::string data = data_block(render_html(document_with("a\xe2\x80\xa8z\xe2\x80\xa9")));
    EXPECT_THAT(data, HasSubstr("a\\u2028z\\u2029"));
}

TEST(RenderHtml, PlaceholdersInTokensStayText) {
    EXPECT_THAT(data_block(render_html(document_with("{{script}}"))), HasSubstr("\"{{script}}\""));
}

TEST(RenderHtml, StrictPolicyByHash) {
    const std::string html = render_html(document_with("a"));
    EXPECT_THAT(html, HasSubstr("default-src 'none'; script-src 'sha256-"));
    EXPECT_THAT(html, Not(HasSubstr("unsafe")));
    EXPECT_THAT(html, Not(HasSubstr("{{")));
    EXPECT_THAT(html, Not(HasSubstr("src=\"http")));
    EXPECT_THAT(html, Not(HasSubstr("href=\"http")));
}

TEST(RenderHtml, TableOfTheWeightsWithoutScript) {
    const std::string html = render_html(document_with("a"));
    EXPECT_THAT(html, HasSubstr("<th scope=\"row\">a</th><td>0.25</td><td>0.75</td></tr>"));
    EXPECT_THAT(html, HasSubstr("<th scope=\"row\">b</th><td>0.125</td><td>0.875</td></tr>"));
}

TEST(RenderHtml, LargeDocumentsLeaveOutWhatThePageComputes) {
    std::string document = document_with(std::string(std::size_t{5} << 20U, 'x'));
    document.replace(document.find("\"weights\""), 0,
                     R"("dropout_mask":{"shape":[0],"data":[]},"masked":{"shape":[0],"data":[]},)");
    const std::string data = data_block(render_html(document));
    EXPECT_THAT(data, Not(HasSubstr("\"weights\"")));
    EXPECT_THAT(data, Not(HasSubstr("\"masked\"")));
    EXPECT_THAT(data, HasSubstr("\"dropout_mask\""));
    EXPECT_THAT(data, HasSubstr(R"("data":[1,2])"));
}

TEST(RenderHtml, RefusesWhatIsNoDocument) {
    for (const char* bad : {"", "[", "[1]", "{}", R"({"tokens":[],"stages":[]})", R"({"tokens":1,"stages":[{}]})"}) {
        EXPECT_THROW(static_cast<void>(render_html(bad)), qkv::Error) << bad;
    }
}

TEST(RenderHtml, ToleratesStagesItDoesNotKnow) {
    for (const char* stages : {"[1]", "[{}]", R"([{"tensors":1}])", R"([{"tensors":{"weights":{"data":[1]}}}])",
                               R"([{"tokens":1,"source_tokens":2,"tensors":{"weights":{"data":[1]}}}])"}) {
        const std::string document = std::string(R"({"tokens":["a","b"],"stages":)") + stages + "}";
        EXPECT_THAT(render_html(document), Not(HasSubstr("<table>"))) << stages;
    }
}

}  // namespace
