// SPDX-License-Identifier: MIT
// Status pages as a process makes them, and as one that lies does.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <memory>
#include <random>
#include <string>

#include "preload/reasons.h"
#include "tools/metrics_text.h"
#include "tools/status_page.h"
#include "tools/stream_view.h"
#include "tools/top_view.h"

namespace mpklink {
namespace {

/// A file like the library's, mapped to be written.
class Page {
 public:
  explicit Page(std::size_t bytes = kStatusBytes) : bytes_(bytes) {
    fd = memfd_create(kStatusName, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    REQUIRE(ftruncate(fd, static_cast<off_t>(bytes)) == 0);
    memory_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    REQUIRE(memory_ != MAP_FAILED);
    header().magic = kStatusMagic;
    header().version = kStatusVersion;
    header().header_bytes = sizeof(StatusHeader);
    header().row_bytes = sizeof(StatusRow);
    header().rows = kStatusRows;
  }
  ~Page() {
    munmap(memory_, bytes_);
    close(fd);
  }
  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;

  void seal() { REQUIRE(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0); }
  StatusHeader& header() { return *static_cast<StatusHeader*>(memory_); }
  StatusRow& row(std::uint32_t i) { return reinterpret_cast<StatusRow*>(&header() + 1)[i]; }
  std::optional<StatusPage> mapped() { return StatusPage::map(fd, StatusPage::Access::kRead); }
  void fill(std::mt19937* random, std::size_t from, std::size_t to) {
    for (std::size_t i = from; i < to; ++i) static_cast<unsigned char*>(memory_)[i] = static_cast<unsigned char>((*random)());
  }

  int fd = -1;

 private:
  void* memory_ = nullptr;
  std::size_t bytes_;
};

void set_row(StatusRow* row, RowMode mode, std::uint16_t local, std::uint16_t peer, std::uint64_t sent, std::uint64_t received) {
  row->mode.store_relaxed(static_cast<std::uint32_t>(mode));
  row->ports.store_relaxed(std::uint32_t{local} << 16 | peer);
  row->tx_bytes.store_relaxed(sent);
  row->rx_bytes.store_relaxed(received);
}

}  // namespace

TEST_CASE("a page is read", "[status]") {
  Page page;
  page.seal();
  page.header().rows_used.store_relaxed(3);
  set_row(&page.row(0), RowMode::kShared, 80, 1000, 5, 7);
  set_row(&page.row(2), RowMode::kPlain, 81, 1001, 1, 2);
  page.row(2).reason.store_relaxed(2);
  memset(page.header().library_version, 'v', sizeof page.header().library_version);  // no end
  const PageContent content = page.mapped()->read();
  REQUIRE(content.streams.size() == 2);
  CHECK(content.streams[0].local.port == 80);
  CHECK(content.streams[0].tx_bytes == 5);
  CHECK(content.streams[1].row == 2);
  CHECK(reason_slug(content.streams[1].reason) == kReasonTexts[1].slug);
  CHECK(content.library_version == std::string(16, 'v'));
}

TEST_CASE("what is no page is none", "[status]") {
  Page page;
  SECTION("no seals: it could be cut under the reader") { CHECK_FALSE(page.mapped()); }
  page.seal();
  SECTION("good") { CHECK(page.mapped()); }
  SECTION("magic") {
    page.header().magic = 1;
    CHECK_FALSE(page.mapped());
  }
  SECTION("sizes") {
    std::uint32_t* const number = GENERATE_REF(&page.header().header_bytes, &page.header().row_bytes, &page.header().rows);
    *number = GENERATE(0u, 1u, 0xffffffffu);
    CHECK_FALSE(page.mapped());
  }
}

TEST_CASE("a page that is too short is none, unless it is another version's", "[status]") {
  Page page(8192);
  page.seal();
  CHECK_FALSE(page.mapped());
  page.header().version = kStatusVersion + 1;
  REQUIRE(page.mapped());
  CHECK_FALSE(page.mapped()->same_version());
}

TEST_CASE("rows that are impossible or never at rest are left out", "[status]") {
  Page page;
  page.seal();
  page.header().rows_used.store_relaxed(0xffffffff);
  set_row(&page.row(0), static_cast<RowMode>(99), 1, 2, 0, 0);
  set_row(&page.row(1), RowMode::kShared, 1, 2, 0, 0);
  page.row(1).sequence.store_relaxed(7);
  set_row(&page.row(kStatusRows - 1), RowMode::kShared, 1, 2, 0, 0);
  page.row(kStatusRows - 1).reason.store_relaxed(0xffffffff);
  const std::vector<StreamInfo> streams = page.mapped()->streams();
  REQUIRE(streams.size() == 1);
  CHECK(streams[0].row == kStatusRows - 1);
  CHECK(reason_slug(streams[0].reason) == "reason-4294967295");
  CHECK_FALSE(reason_sentence(streams[0].reason).empty());
}

TEST_CASE("random pages end in text", "[status]") {
  std::mt19937 random(GENERATE(range(1u, 9u)));
  Page page;
  page.seal();
  page.fill(&random, offsetof(StatusHeader, pid), sizeof(StatusHeader) + 200 * sizeof(StatusRow));
  for (std::uint32_t i = 0; i < 200; ++i) {
    page.row(i).sequence.store_relaxed(i % 3);
    page.row(i).mode.store_relaxed(random() % 6);
  }
  std::vector<ProcessStatus> processes = {{{1, 0, "x", 1}, kStatusVersion, page.mapped()->read()}};
  CHECK_FALSE(metrics_text(processes).empty());
  const Look before{std::chrono::steady_clock::time_point(std::chrono::seconds(1)), processes};
  const Look now{std::chrono::steady_clock::time_point(std::chrono::seconds(2)), processes};
  const Rates rates = rates_between(before, now, {});
  CHECK_FALSE(top_text(rates, "now", 24, 80).empty());
  CHECK_FALSE(top_json(rates, 1).empty());
}

TEST_CASE("what is on its way takes both ends, of one network", "[status]") {
  ProcessStatus a{{1, 0, "a", 7}, kStatusVersion, PageContent()}, b{{2, 0, "b", 7}, kStatusVersion, PageContent()};
  StreamInfo stream;
  stream.mode = RowMode::kShared;
  stream.local.port = 80;
  stream.peer.port = 1000;
  stream.tx_bytes = 100;
  stream.rx_bytes = 50;
  a.content->streams = {stream};
  std::swap(stream.local, stream.peer);
  stream.tx_bytes = 40;  // read earlier: 50 have arrived
  stream.rx_bytes = 70;
  b.content->streams = {stream};
  std::vector<StreamView> views;
  SECTION("seen") {
    const std::vector<ProcessStatus> both = {a, b};
    views = view_streams(both, {});
    CHECK(views[0].send_queue == 30);
    CHECK(views[0].receive_queue == 0);
    CHECK(views[1].receive_queue == 30);
    CHECK(totals_text(views, 2) == "2 streams (2 shared) of 2 processes");
  }
  SECTION("another network has the same addresses") {
    b.process.network = 8;
    const std::vector<ProcessStatus> both = {a, b};
    views = view_streams(both, {});
    CHECK_FALSE(views[0].send_queue);
  }
}

TEST_CASE("numbers are short", "[status]") {
  CHECK(short_number(9999) == "9999");
  CHECK(short_number(10240) == "10.0K");
  CHECK(short_number(1 << 20) == "1.0M");
  for (std::uint64_t n = 1; n != 0; n <<= 1) CHECK(short_number(n - 1).size() <= 5);
  CHECK(short_number(~std::uint64_t{0}).size() <= 5);
}

TEST_CASE("labels of metrics are escaped", "[status]") {
  CHECK(escape_label("a\"b\\c\nd") == "a\\\"b\\\\c\\nd");
}

}  // namespace mpklink
