/* Reads pages of a relation at an LSN, by the bytes of docs/formats/get-pages.md and no library. */
#define _POSIX_C_SOURCE 200809L
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

/* With so many blocks all requests fit into the first window of the server: 65,535 bytes. */
enum { PAGE = 8192, BLOCKS = 256, BLOCKS_MAX = 32 * BLOCKS, PATIENCE_SECONDS = 60 };
enum { FRAME = 16384, REQUEST_MAX = 128 + BLOCKS * 6, ANSWER_MAX = BLOCKS * (PAGE + 8) + 4 * FRAME };
enum { DATA = 0, HEADERS = 1, RST_STREAM = 3, SETTINGS = 4, PING = 6, GOAWAY = 7, WINDOW_UPDATE = 8 };
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4, PADDED = 8, STREAM = 1 };
enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };
static const uint8_t hello[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    "\0\0\x12\x04\0\0\0\0\0" "\0\x01\0\0\0\0" "\0\x02\0\0\0\0" "\0\x04\0\x40\0\0" /* SETTINGS */
    "\0\0\x04\x08\0\0\0\0\0" "\0\x3f\0\0";      /* WINDOW_UPDATE of the connection */
static const uint8_t call[] = "\x83\x86\x04\x28/palimpsest.page.v1.PageService/GetPages\x01\x09localhost"
    "\x0f\x10\x10" "application/grpc" "\0\x02te\x08trailers";
struct bytes { const uint8_t *at, *end; };      /* received, and not looked at yet */
static int tcp;
/* What all requests share: the timeline, then the LSN and the relation. */
static uint8_t what[128] = "\x12\x24\x0a\x10----------------\x12\x10----------------", *what_end = what + 38;
static uint8_t *pages, answer[ANSWER_MAX];
static uint32_t blocks[BLOCKS_MAX], block_count, requests, answered, answer_length;
static bool is_answered[BLOCKS_MAX / BLOCKS];

static void check(bool right, const char *why)
{
    if (right) return;
    fprintf(stderr, "getpages: %s\n", why);
    exit(2);
}
static uint32_t get_u32(const uint8_t *at) { uint32_t value; memcpy(&value, at, 4); return ntohl(value); }
static void put_u32(uint8_t *at, uint32_t value) { value = htonl(value); memcpy(at, &value, 4); }
static void send_frame(uint8_t type, uint8_t flags, uint32_t stream, const void *body, size_t size)
{
    uint8_t frame[9 + REQUEST_MAX];
    put_u32(frame, (uint32_t) size << 8 | type);
    frame[4] = flags;
    put_u32(frame + 5, stream);
    memcpy(frame + 9, body, size);
    check(send(tcp, frame, size + 9, MSG_NOSIGNAL) == (ssize_t) size + 9, "the connection is lost");
}
static uint8_t *put_varint(uint8_t *at, uint64_t value)
{
    for (; value >= 0x80; value >>= 7) *at++ = (uint8_t) (value | 0x80);
    *at++ = (uint8_t) value;
    return at;
}
/* A message of numbers, shorter than 128 bytes: its length is one byte. */
static uint8_t *put_numbers(uint8_t *at, unsigned field, const unsigned long long *numbers, int count)
{
    uint8_t *length = put_varint(at, field << 3 | BYTES);
    at = length + 1;
    for (unsigned i = 1; count-- > 0; i++) at = put_varint(put_varint(at, i << 3 | VARINT), *numbers++);
    *length = (uint8_t) (at - length - 1);
    return at;
}
static uint64_t get_varint(struct bytes *from)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64 && from->at < from->end; shift += 7) {
        value |= (uint64_t) (*from->at & 0x7f) << shift;
        if (*from->at++ < 0x80) return value;
    }
    check(false, "a number that does not end");
    return 0;
}
/* The key of the next field, with its number or its bytes; 0 at the end. */
static uint64_t get_field(struct bytes *from, uint64_t *number, struct bytes *content)
{
    uint64_t key = from->at == from->end ? 0 : get_varint(from), type = key & 7;
    if (key == 0) return 0;
    check(type <= BYTES || type == FIXED32, "a field of an unknown type");
    *number = type == FIXED64 ? 8 : type == FIXED32 ? 4 : get_varint(from);
    if (type == VARINT) return key;
    check(*number <= (uint64_t) (from->end - from->at), "a field that is cut off");
    *content = (struct bytes) {from->at, from->at + *number};
    from->at = content->end;
    return key;
}
static uint32_t blocks_of(uint64_t id) { return id < requests ? BLOCKS : (block_count - 1) % BLOCKS + 1; }
static void send_request(uint32_t id)
{
    uint8_t message[REQUEST_MAX] = {0}, *at = put_varint(put_varint(message + 5, 1 << 3 | VARINT), id);
    for (const uint8_t *byte = what; byte < what_end; byte++) *at++ = *byte;
    for (uint32_t i = 0; i < blocks_of(id); i++)
        at = put_varint(put_varint(at, 5 << 3 | VARINT), blocks[(id - 1) * BLOCKS + i]);
    put_u32(message + 1, (uint32_t) (at - message) - 5);
    send_frame(DATA, id == requests ? END_STREAM : 0, STREAM, message, (size_t) (at - message));
}
static void report_error(struct bytes detail)
{
    static const char *const kinds[] = {"internal", "invalid", "not-found", "already-exists", "conflict",
                                        "fenced", "not-ready", "throttled", "corrupt", "internal"};
    uint64_t key, number, kind = 0, reason = 0;
    struct bytes content = detail, text = {detail.end, detail.end};
    while ((key = get_field(&detail, &number, &content)) != 0) {
        if (key == (1 << 3 | VARINT)) kind = number < sizeof kinds / sizeof *kinds ? number : 0;
        if (key == (2 << 3 | BYTES)) text = content;
        if (key == (3 << 3 | VARINT)) reason = number;
    }
    fprintf(stderr, "%s/%u: %.*s\n", kinds[kind], (unsigned) reason, (int) (text.end - text.at),
            (const char *) text.at);
    exit(1);
}
static void take_answer(struct bytes message)
{
    uint64_t key, number, id = 0, count = 0;
    struct bytes content = message;
    while ((key = get_field(&message, &number, &content)) != 0) {
        if (key == (1 << 3 | VARINT) && id == 0) id = number;
        if (key == (2 << 3 | BYTES)) report_error(content);
        if (key != (4 << 3 | BYTES)) continue;
        check(id > 0 && id <= requests && !is_answered[id - 1], "an answer that nobody asked for");
        check(number == PAGE && count < blocks_of(id), "other pages than asked for");
        memcpy(pages + ((id - 1) * BLOCKS + count++) * PAGE, content.at, PAGE);
    }
    check(count > 0 && count == blocks_of(id), "an answer without all its pages");
    is_answered[id - 1] = true, answered++;
}
/* A message may be spread over frames, and a frame may hold several. */
static void take_data(const uint8_t *from, uint32_t size)
{
    check(size <= ANSWER_MAX - answer_length, "an answer that is too long");
    memcpy(answer + answer_length, from, size);
    answer_length += size;
    while (answer_length >= 5 && answer_length - 5 >= (size = get_u32(answer + 1))) {
        check(answer[0] == 0, "an answer that is compressed");
        take_answer((struct bytes) {answer + 5, answer + 5 + size});
        answer_length -= 5 + size;
        memmove(answer, answer + 5 + size, answer_length);
    }
}
static void take_frame(void)
{
    uint8_t head[9], body[FRAME], credit[4];
    check(recv(tcp, head, sizeof head, MSG_WAITALL) == sizeof head, "no answer, the connection is lost");
    uint32_t size = get_u32(head) >> 8, stream = get_u32(head + 5) & INT32_MAX, skip = 0, padding = 0;
    check(size <= FRAME && recv(tcp, body, size, MSG_WAITALL) == (ssize_t) size, "a frame cut off");
    uint8_t type = head[3], flags = head[4];
    if (type == DATA && stream == STREAM && size > 0) {
        if (flags & PADDED) padding = body[skip++];
        check(padding <= size - skip, "a frame with more padding than bytes");
        take_data(body + skip, size - skip - padding);
        put_u32(credit, size);
        for (uint32_t id = 0; id <= STREAM; id++) send_frame(WINDOW_UPDATE, 0, id, credit, sizeof credit);
    }
    if (type == SETTINGS && !(flags & ACK)) send_frame(SETTINGS, ACK, 0, "", 0);
    if (type == PING && size == 8 && !(flags & ACK)) send_frame(PING, ACK, 0, body, size);
    check(type != GOAWAY || size < 8 || get_u32(body + 4) == 0, "the server ends the connection");
    bool ends = type == RST_STREAM || (type <= HEADERS && flags & END_STREAM);
    check(!ends || stream != STREAM || answered == requests, "the stream ended before its answers");
}
static void open_connection(char *address)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    struct timeval patience = {.tv_sec = PATIENCE_SECONDS};
    char *host = strtok(address, ":"), *port = strtok(NULL, "");
    check(getaddrinfo(host, port, &hints, &found) == 0, "an address is HOST:PORT");
    tcp = socket(found->ai_family, found->ai_socktype, found->ai_protocol);
    setsockopt(tcp, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(tcp, IPPROTO_TCP, TCP_NODELAY, &(int) {1}, sizeof(int));
    check(connect(tcp, found->ai_addr, found->ai_addrlen) == 0, "nobody listens at that address");
    freeaddrinfo(found);
    check(send(tcp, hello, sizeof hello - 1, MSG_NOSIGNAL) == sizeof hello - 1, "can't send");
    send_frame(HEADERS, END_HEADERS, STREAM, call, sizeof call - 1);
}
int main(int argc, char **argv)
{
    static const char usage[] = "usage: getpages HOST:PORT TENANT TIMELINE SPC/DB/REL[:FORK] LSN BLOCK...";
    static const char *const forks[] = {"main", "fsm", "vm", "init"};
    unsigned long long rel[4] = {0}, high, low, block;
    char fork[5] = "main", mark = ':', rest;
    check(argc > 6 && argc <= 6 + BLOCKS_MAX && strlen(argv[2]) == 32 && strlen(argv[3]) == 32, usage);
    for (size_t i = 0; i < 16; i++)
        check(sscanf(argv[2] + 2 * i, "%2hhx", what + 4 + i) == 1
              && sscanf(argv[3] + 2 * i, "%2hhx", what + 22 + i) == 1, usage);
    int parts = sscanf(argv[4], "%10llu/%10llu/%10llu%c%4[a-z]%c", rel, rel + 1, rel + 2, &mark, fork, &rest);
    check((parts == 3 || parts == 5) && mark == ':' && (rel[0] | rel[1] | rel[2]) <= UINT32_MAX, usage);
    while (rel[3] < 4 && strcmp(forks[rel[3]], fork) != 0) rel[3]++;
    check(sscanf(argv[5], "%8llx/%8llx%c", &high, &low, &rest) == 2, usage);
    low |= high << 32;
    what_end = put_numbers(put_numbers(what_end, 3, &low, 1), 4, rel, 4);
    for (; (int) block_count < argc - 6; blocks[block_count++] = (uint32_t) block)
        check(sscanf(argv[6 + block_count], "%10llu%c", &block, &rest) == 1 && block <= UINT32_MAX, usage);
    requests = (block_count + BLOCKS - 1) / BLOCKS;
    check((pages = calloc(block_count, PAGE)) != NULL, "there is no memory for the pages");
    open_connection(argv[1]);
    for (uint32_t id = 1; id <= requests; id++) send_request(id);
    while (answered < requests) take_frame();
    check(fwrite(pages, PAGE, block_count, stdout) == block_count && fflush(stdout) == 0, "can't write");
    return 0;
}
