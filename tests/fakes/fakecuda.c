/* A CUDA driver that computes on the host, so that our driver calls run end to end without a GPU.

   It is strict rather than complete. A stream is a queue: nothing runs before a synchronisation, so
   that a missing one shows. A capturing stream records instead, and refuses pageable memory and
   allocation, as CUDA does. Every call requires a current context in its thread. A test can ask what
   was called and make the next call of a function fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long u64;
typedef void (*Kernel)(long);
typedef struct { void *to; const void *from; size_t size; Kernel kernel; long argument; } Op;
typedef struct { Op *ops; int count, room; } Queue;
typedef struct { Queue waiting, captured; int capturing; } Stream;

enum {
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_CONTEXT = 201,
    CAPTURE_UNSUPPORTED = 900,
    NOT_CAPTURING = 901,
};

/* ---------------------------------------------------------------- control by a test */

static struct { const char *name; long count; } calls[64];
static char failing[64] = "", device_name[64] = "Fake GPU";
static int failure = 0, major = 8, minor = 6, driver = 13000, integrated = 0;
static int live = 0;
static __thread void *current = 0;

static int called(const char *name) {
    int i = 0;
    while (calls[i].name && strcmp(calls[i].name, name)) i++;
    calls[i].name = name;
    calls[i].count++;
    if (strcmp(failing, name)) return 0;
    failing[0] = 0;
    return failure;
}

/* How often a function was called. */
long fake_calls(const char *name) {
    for (int i = 0; calls[i].name; i++) if (!strcmp(calls[i].name, name)) return calls[i].count;
    return 0;
}
/* Make the next call of a function return this status. */
void fake_fail(const char *name, int code) {
    snprintf(failing, sizeof failing, "%s", name);
    failure = code;
}
void fake_device(const char *name, int a, int b) {
    snprintf(device_name, sizeof device_name, "%s", name);
    major = a;
    minor = b;
}
/* Let the GPU share the memory of the host. */
void fake_integrated(void) { integrated = 1; }
void fake_driver(int version) { driver = version; }
/* The number of allocations, streams and graphs that were not freed. */
int fake_live(void) { return live; }

#define CALLED do { int code = called(__func__); if (code) return code; } while (0)
#define IN_CONTEXT do { CALLED; if (!current) return INVALID_CONTEXT; } while (0)

/* ---------------------------------------------------------------- device and context */

int cuInit(unsigned flags) { CALLED; return 0; }
int cuDriverGetVersion(int *version) { CALLED; *version = driver; return 0; }
int cuDeviceGetCount(int *count) { CALLED; *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { CALLED; *device = ordinal; return ordinal ? 101 : 0; }
int cuDeviceGetName(char *name, int size, int device) {
    CALLED;
    snprintf(name, size, "%s", device_name);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    CALLED;
    *value = attribute == 75 ? major : attribute == 76 ? minor : attribute == 18 ? integrated : 0;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    CALLED;
    *context = (void *)0x1000;
    return 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) { CALLED; return 0; }
int cuCtxSetCurrent(void *context) { CALLED; current = context; return 0; }
int cuGetErrorName(int error, const char **name) {
    *name = "CUDA_ERROR_FAKE";
    if (error == 2) *name = "CUDA_ERROR_OUT_OF_MEMORY";
    if (error == 700) *name = "CUDA_ERROR_ILLEGAL_ADDRESS";
    return 0;
}
int cuGetErrorString(int error, const char **text) {
    *text = error == 2 ? "out of memory" : "a made-up error";
    return 0;
}

/* ---------------------------------------------------------------- memory */

static struct { char *start; size_t size; int mapped; } pinned[256];
static struct { u64 start; size_t size; int device; } allocated[256];
static int capturing_streams = 0;

int cuMemAlloc_v2(u64 *address, size_t size) {
    IN_CONTEXT;
    if (capturing_streams) return CAPTURE_UNSUPPORTED;
    if (!size) return INVALID_VALUE;
    int i = 0;
    while (allocated[i].start) i++;
    /* CUDA aligns device memory. */
    *address = allocated[i].start = (u64)aligned_alloc(256, (size + 255) / 256 * 256);
    allocated[i].size = size;
    allocated[i].device = 0;
    live++;
    return 0;
}
static int find_allocated(u64 address) {
    for (int i = 0; i < 256; i++) {
        u64 first = allocated[i].start;
        if (first && address >= first && address < first + allocated[i].size) return i;
    }
    return -1;
}
int cuMemFree_v2(u64 address) {
    IN_CONTEXT;
    int i = find_allocated(address);
    if (i < 0) return INVALID_VALUE;
    allocated[i].start = 0;
    free((void *)address);
    live--;
    return 0;
}
/* Let device memory be that of another GPU. */
void fake_place(u64 address, int device) { allocated[find_allocated(address)].device = device; }
int cuPointerGetAttribute(void *value, int attribute, u64 address) {
    IN_CONTEXT;
    int i = find_allocated(address);
    if (i < 0 || attribute != 9) return INVALID_VALUE;
    *(int *)value = allocated[i].device;
    return 0;
}
int cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    IN_CONTEXT;
    if (capturing_streams) return CAPTURE_UNSUPPORTED;
    if (!size) return INVALID_VALUE;
    int i = 0;
    while (pinned[i].start) i++;
    *address = pinned[i].start = aligned_alloc(256, (size + 255) / 256 * 256);
    memset(*address, 0, size);
    pinned[i].size = size;
    pinned[i].mapped = (flags & 2) != 0;
    live++;
    return 0;
}
int cuMemHostGetDevicePointer_v2(u64 *address, void *host, unsigned flags) {
    IN_CONTEXT;
    for (int i = 0; i < 256; i++) {
        if (pinned[i].start != host || !pinned[i].mapped) continue;
        *address = (u64)host;
        return 0;
    }
    return INVALID_VALUE;
}
int cuMemFreeHost(void *address) {
    IN_CONTEXT;
    for (int i = 0; i < 256; i++) {
        if (pinned[i].start != address) continue;
        pinned[i].start = 0;
        free(address);
        live--;
        return 0;
    }
    return INVALID_VALUE;
}
static int is_pinned(const char *start, size_t size) {
    for (int i = 0; i < 256; i++) {
        char *first = pinned[i].start;
        if (first && start >= first && start + size <= first + pinned[i].size) return 1;
    }
    return 0;
}

/* ---------------------------------------------------------------- streams and graphs */

static void append(Queue *queue, Op op) {
    if (queue->count == queue->room) {
        queue->room = 2 * queue->room + 8;
        queue->ops = realloc(queue->ops, sizeof(Op) * queue->room);
    }
    queue->ops[queue->count++] = op;
}
static void submit(void *stream, Op op) {
    Stream *s = stream;
    append(s->capturing ? &s->captured : &s->waiting, op);
}
static void run(Queue *queue) {
    int count = queue->count;
    queue->count = 0;
    for (int i = 0; i < count; i++) {
        Op op = queue->ops[i];
        if (op.kernel) op.kernel(op.argument);
        else memcpy(op.to, op.from, op.size);
    }
}

int cuStreamCreate(void **stream, unsigned flags) {
    IN_CONTEXT;
    *stream = calloc(1, sizeof(Stream));
    live++;
    return 0;
}
int cuStreamDestroy_v2(void *stream) { IN_CONTEXT; free(stream); live--; return 0; }
int cuStreamSynchronize(void *stream) {
    IN_CONTEXT;
    if ((u64)stream == 1 || (u64)stream == 2) return 0;  /* the default streams, without work */
    if (((Stream *)stream)->capturing) return CAPTURE_UNSUPPORTED;
    run(&((Stream *)stream)->waiting);
    return 0;
}
int cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t size, void *stream) {
    IN_CONTEXT;
    if (((Stream *)stream)->capturing && !is_pinned(from, size)) return CAPTURE_UNSUPPORTED;
    submit(stream, (Op){.to = (void *)to, .from = from, .size = size});
    return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t size, void *stream) {
    IN_CONTEXT;
    if (((Stream *)stream)->capturing && !is_pinned(to, size)) return CAPTURE_UNSUPPORTED;
    submit(stream, (Op){.to = to, .from = (void *)from, .size = size});
    return 0;
}
/* A kernel launch, with which the fake TensorRT enqueues its arithmetic. */
int fake_launch(Kernel kernel, long argument, void *stream) {
    submit(stream, (Op){.kernel = kernel, .argument = argument});
    return 0;
}

int cuStreamBeginCapture_v2(void *stream, int mode) {
    IN_CONTEXT;
    ((Stream *)stream)->capturing = 1;
    capturing_streams++;
    return 0;
}
int cuStreamEndCapture(void *stream, void **graph) {
    Stream *s = stream;
    if (!s->capturing) return NOT_CAPTURING;
    s->capturing = 0;
    capturing_streams--;
    Queue *queue = malloc(sizeof(Queue));
    *queue = s->captured;
    memset(&s->captured, 0, sizeof(Queue));
    int code = called(__func__);  /* a capture that fails has ended as well, and gives no graph */
    if (code) { free(queue->ops); free(queue); return code; }
    *graph = queue;
    live++;
    return 0;
}
int cuGraphInstantiateWithFlags(void **executable, void *graph, u64 flags) {
    IN_CONTEXT;
    Queue *from = graph, *to = malloc(sizeof(Queue));
    *to = (Queue){malloc(sizeof(Op) * from->count), from->count, from->count};
    memcpy(to->ops, from->ops, sizeof(Op) * from->count);
    *executable = to;
    live++;
    return 0;
}
int cuGraphDestroy(void *graph) {
    IN_CONTEXT;
    free(((Queue *)graph)->ops);
    free(graph);
    live--;
    return 0;
}
int cuGraphExecDestroy(void *executable) {
    IN_CONTEXT;
    free(((Queue *)executable)->ops);
    free(executable);
    live--;
    return 0;
}
int cuGraphLaunch(void *executable, void *stream) {
    IN_CONTEXT;
    Queue *queue = executable;
    for (int i = 0; i < queue->count; i++) submit(stream, queue->ops[i]);
    return 0;
}

/* ---------------------------------------------------------------- how cuda-bindings finds these */

int cuGetProcAddress_v2(const char *name, void **address, int version, u64 flags, int *status) {
    char versioned[96];
    Dl_info here;
    dladdr((void *)cuInit, &here);
    void *library = dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    snprintf(versioned, sizeof versioned, "%s_v2", name);
    *address = dlsym(library, versioned);
    if (!*address) *address = dlsym(library, name);
    dlclose(library);
    if (status) *status = *address ? 0 : 1;
    return *address ? 0 : 500;
}
int cuGetProcAddress(const char *name, void **address, int version, u64 flags) {
    return cuGetProcAddress_v2(name, address, version, flags, 0);
}
