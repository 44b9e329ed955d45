// Included once for each instruction set; see simd.h for what the kernels do. Nothing here may be shared between the
// inclusions: a function that the linker merges could bring AVX-512 code to a processor without it. So everything is in
// an unnamed namespace and no template of the standard library is used.
//
// Built with -ffp-contract=off: comparisons against a threshold must not depend on the instruction set. Sums that
// may be fused say so with fma().

#include <cstring>

#define DETLAB_INLINE inline __attribute__((always_inline))

namespace detlab {
namespace {

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(DETLAB_VECTOR_BYTES)));
};
template <typename T>
using Vec = typename VectorOf<T>::type;
template <typename T>
using Mask = decltype(Vec<T>{} > Vec<T>{});
template <typename T>
constexpr int kWidth = DETLAB_VECTOR_BYTES / static_cast<int>(sizeof(T));
constexpr int kParts = kLineBytes / DETLAB_VECTOR_BYTES;  // vectors in a cell

template <typename T>
DETLAB_INLINE Vec<T> load(const T* source) {
  Vec<T> v;
  std::memcpy(&v, source, sizeof(v));
  return v;
}

template <typename T>
DETLAB_INLINE void store(T* target, Vec<T> v) {
  std::memcpy(target, &v, sizeof(v));
}

template <typename T>
DETLAB_INLINE Vec<T> splat(T value) {
  return value - Vec<T>{};
}

template <typename T>
DETLAB_INLINE Vec<T> smaller(Vec<T> a, Vec<T> b) {
  return a < b ? a : b;
}

template <typename T>
DETLAB_INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {
  return a > b ? a : b;
}

#if DETLAB_VECTOR_BYTES == 64
DETLAB_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return (Vec<float>)_mm512_fmadd_ps(a, b, c); }
DETLAB_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)_mm512_fmadd_pd(a, b, c);
}
DETLAB_INLINE unsigned bits(Mask<float> m) { return _mm512_movepi32_mask((__m512i)m); }
DETLAB_INLINE unsigned bits(Mask<double> m) { return _mm512_movepi64_mask((__m512i)m); }
DETLAB_INLINE Vec<float> load_wide(const Half* source) {
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
}
#elif DETLAB_VECTOR_BYTES == 32
DETLAB_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return (Vec<float>)_mm256_fmadd_ps(a, b, c); }
DETLAB_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)_mm256_fmadd_pd(a, b, c);
}
DETLAB_INLINE unsigned bits(Mask<float> m) { return _mm256_movemask_ps((__m256)m); }
DETLAB_INLINE unsigned bits(Mask<double> m) { return _mm256_movemask_pd((__m256d)m); }
DETLAB_INLINE Vec<float> load_wide(const Half* source) {
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
}
#else
template <typename V>
DETLAB_INLINE V fma(V a, V b, V c) {
  return a * b + c;
}
template <typename M>
DETLAB_INLINE unsigned bits(M m) {
  unsigned all = 0;
  for (int lane = 0; lane < static_cast<int>(sizeof(M) / sizeof(m[0])); ++lane) all |= (m[lane] != 0) << lane;
  return all;
}
DETLAB_INLINE Vec<float> load_wide(const Half* source) {
  Vec<float> v;
  for (int lane = 0; lane < kWidth<float>; ++lane) v[lane] = static_cast<float>(source[lane]);
  return v;
}
#endif

template <typename T>
constexpr unsigned kAllBits = (1u << kWidth<T>)-1;

DETLAB_INLINE Vec<float> load_wide(const float* source) { return load<float>(source); }
DETLAB_INLINE Vec<double> load_wide(const double* source) { return load<double>(source); }
DETLAB_INLINE Vec<float> load_wide(const BFloat16* source) {
  typedef uint16_t Short __attribute__((vector_size(DETLAB_VECTOR_BYTES / 2)));
  typedef uint32_t Long __attribute__((vector_size(DETLAB_VECTOR_BYTES)));
  Short narrow;
  std::memcpy(&narrow, source, sizeof(narrow));
  return (Vec<float>)(__builtin_convertvector(narrow, Long) << 16);
}

DETLAB_INLINE void store_narrow(float* target, Vec<float> v) { store<float>(target, v); }
DETLAB_INLINE void store_narrow(double* target, Vec<double> v) { store<double>(target, v); }
template <typename S>
DETLAB_INLINE void store_narrow(S* target, Vec<float> v) {
  for (int lane = 0; lane < kWidth<float>; ++lane) target[lane] = static_cast<S>(v[lane]);
}

// Stores around the caches, of whole lines only: `target` must lie on the boundary of one.
#if DETLAB_VECTOR_BYTES == 64
DETLAB_INLINE void stream_line(const void* source, void* target) {
  _mm512_stream_si512(static_cast<__m512i*>(target), _mm512_loadu_si512(source));
}
#elif DETLAB_VECTOR_BYTES == 32
DETLAB_INLINE void stream_line(const void* source, void* target) {
  const __m256i* from = static_cast<const __m256i*>(source);
  __m256i* to = static_cast<__m256i*>(target);
  const __m256i first = _mm256_loadu_si256(from), second = _mm256_loadu_si256(from + 1);
  _mm256_stream_si256(to, first);
  _mm256_stream_si256(to + 1, second);
}
#else
DETLAB_INLINE void stream_line(const void* source, void* target) { std::memcpy(target, source, kLineBytes); }
#endif

void finish_streaming() {
#if DETLAB_VECTOR_BYTES > 16
  _mm_sfence();
#endif
}

DETLAB_INLINE int64_t bytes_to_next_line(const void* data) {
  return static_cast<int64_t>(-reinterpret_cast<uintptr_t>(data) % kLineBytes);
}

void stream(const void* source, void* target, int64_t bytes) {
  const char* from = static_cast<const char*>(source);
  char* to = static_cast<char*>(target);
  const int64_t head = bytes_to_next_line(to) < bytes ? bytes_to_next_line(to) : bytes;
  std::memcpy(to, from, head);
  int64_t k = head;
  for (; k + kLineBytes <= bytes; k += kLineBytes) stream_line(from + k, to + k);
  std::memcpy(to + k, from + k, bytes - k);
}

// Pooling.

template <int COLUMNS, typename T>
DETLAB_INLINE void sum_rows(const T* const* columns, const int32_t* rows, const T* weights, int num_rows,
                            int64_t row_stride, T* sums) {
  Vec<T> acc[COLUMNS][kParts] = {};
  for (int tap = 0; tap < num_rows; ++tap) {
    const int64_t offset = rows[tap] * row_stride;
    const Vec<T> weight = splat(weights[tap]);
#pragma GCC unroll 16
    for (int column = 0; column < COLUMNS; ++column) {
#pragma GCC unroll 16
      for (int part = 0; part < kParts; ++part) {
        acc[column][part] = fma(weight, load(columns[column] + offset + part * kWidth<T>), acc[column][part]);
      }
    }
  }
#pragma GCC unroll 16
  for (int column = 0; column < COLUMNS; ++column) {
#pragma GCC unroll 16
    for (int part = 0; part < kParts; ++part) {
      store(sums + column * kLanes<T> + part * kWidth<T>, acc[column][part]);
    }
  }
}

template <typename T>
DETLAB_INLINE void weighted_sum(const T* cells, const int32_t* slots, const T* weights, int count, T* sum) {
  Vec<T> acc[kParts] = {};
  for (int tap = 0; tap < count; ++tap) {
    const T* cell = cells + static_cast<int64_t>(slots[tap]) * kLanes<T>;
    const Vec<T> weight = splat(weights[tap]);
#pragma GCC unroll 16
    for (int part = 0; part < kParts; ++part) acc[part] = fma(weight, load(cell + part * kWidth<T>), acc[part]);
  }
#pragma GCC unroll 16
  for (int part = 0; part < kParts; ++part) store(sum + part * kWidth<T>, acc[part]);
}

template <typename T>
DETLAB_INLINE void add_weighted(T* cell, const T* addend, Vec<T> weight) {
#pragma GCC unroll 16
  for (int part = 0; part < kParts; ++part) {
    T* lanes = cell + part * kWidth<T>;
    store(lanes, fma(weight, load(addend + part * kWidth<T>), load(lanes)));
  }
}

template <typename T>
void pool_forward(const RegionTaps<T>& taps, CellGrid<const T> cells, T* scratch, T* tile) {
  constexpr int kBlock = kParts == 4 ? 2 : 4;
  for (int i = 0; i < taps.bins_h; ++i) {
    const int32_t* rows = taps.rows + taps.row_starts[i];
    const T* row_weights = taps.row_weights + taps.row_starts[i];
    const int num_rows = taps.row_starts[i + 1] - taps.row_starts[i];
    int column = 0;
    for (; column + kBlock <= taps.num_columns; column += kBlock) {
      const T* columns[kBlock];
      for (int k = 0; k < kBlock; ++k) columns[k] = cells.data + taps.columns[column + k] * cells.column_stride;
      sum_rows<kBlock>(columns, rows, row_weights, num_rows, cells.row_stride, scratch + column * kLanes<T>);
    }
    for (; column < taps.num_columns; ++column) {
      const T* columns[1] = {cells.data + taps.columns[column] * cells.column_stride};
      sum_rows<1>(columns, rows, row_weights, num_rows, cells.row_stride, scratch + column * kLanes<T>);
    }
    for (int j = 0; j < taps.bins_w; ++j) {
      const int first = taps.column_starts[j];
      weighted_sum(scratch, taps.column_slots + first, taps.column_weights + first, taps.column_starts[j + 1] - first,
                   tile + (i * taps.bins_w + j) * kLanes<T>);
    }
  }
}

template <typename T>
void pool_backward(const RegionTaps<T>& taps, const T* tile, T* scratch, CellGrid<T> cells) {
  for (int i = 0; i < taps.bins_h; ++i) {
    std::memset(scratch, 0, sizeof(T) * kLanes<T> * taps.num_columns);
    for (int j = 0; j < taps.bins_w; ++j) {
      for (int tap = taps.column_starts[j]; tap < taps.column_starts[j + 1]; ++tap) {
        add_weighted(scratch + static_cast<int64_t>(taps.column_slots[tap]) * kLanes<T>,
                     tile + (i * taps.bins_w + j) * kLanes<T>, splat(taps.column_weights[tap]));
      }
    }
    for (int tap = taps.row_starts[i]; tap < taps.row_starts[i + 1]; ++tap) {
      T* row = cells.data + taps.rows[tap] * cells.row_stride;
      const Vec<T> weight = splat(taps.row_weights[tap]);
      for (int column = 0; column < taps.num_columns; ++column) {
        add_weighted(row + taps.columns[column] * cells.column_stride, scratch + column * kLanes<T>, weight);
      }
    }
  }
}

template <typename T>
void pool_gather(const BinTaps<T>& taps, const T* cells, T* tile) {
  for (int bin = 0; bin < taps.bins; ++bin) {
    const int64_t first = taps.starts[bin];
    weighted_sum(cells, taps.cells + first, taps.weights + first, static_cast<int>(taps.starts[bin + 1] - first),
                 tile + bin * kLanes<T>);
  }
}

template <typename T>
void pool_scatter(const BinTaps<T>& taps, const T* tile, T* cells) {
  for (int bin = 0; bin < taps.bins; ++bin) {
    for (int64_t tap = taps.starts[bin]; tap < taps.starts[bin + 1]; ++tap) {
      add_weighted(cells + static_cast<int64_t>(taps.cells[tap]) * kLanes<T>, tile + bin * kLanes<T>,
                   splat(taps.weights[tap]));
    }
  }
}

// Packing.

template <int N, int... LANES>
struct MakeLanes : MakeLanes<N - 1, N - 1, LANES...> {};
template <int... LANES>
struct MakeLanes<0, LANES...> {
  template <typename T>
  static DETLAB_INLINE Vec<T> low(Vec<T> a, Vec<T> b) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, (LANES / 2 + (LANES % 2) * kWidth<T>)...);
#else
    return __builtin_shuffle(a, b, Mask<T>{(LANES / 2 + (LANES % 2) * kWidth<T>)...});
#endif
  }
  template <typename T>
  static DETLAB_INLINE Vec<T> high(Vec<T> a, Vec<T> b) {
    constexpr int half = kWidth<T> / 2;
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, (half + LANES / 2 + (LANES % 2) * kWidth<T>)...);
#else
    return __builtin_shuffle(a, b, Mask<T>{(half + LANES / 2 + (LANES % 2) * kWidth<T>)...});
#endif
  }
};

// Riffling the rows of a square with themselves log2(width) times transposes it.
template <typename T>
DETLAB_INLINE void transpose(Vec<T>* square) {
  constexpr int width = kWidth<T>;
#pragma GCC unroll 4
  for (int round = 1; round < width; round *= 2) {
    Vec<T> riffled[width];
#pragma GCC unroll 16
    for (int k = 0; k < width / 2; ++k) {
      riffled[2 * k] = MakeLanes<width>::template low<T>(square[k], square[k + width / 2]);
      riffled[2 * k + 1] = MakeLanes<width>::template high<T>(square[k], square[k + width / 2]);
    }
#pragma GCC unroll 16
    for (int k = 0; k < width; ++k) square[k] = riffled[k];
  }
}

template <typename S, typename T>
DETLAB_INLINE void pack_square(const S* source, int64_t channel_stride, int channels, T* cells) {
#pragma GCC unroll 4
  for (int part = 0; part < kParts; ++part) {
    Vec<T> square[kWidth<T>];
#pragma GCC unroll 16
    for (int k = 0; k < kWidth<T>; ++k) {
      const int channel = part * kWidth<T> + k;
      square[k] = channel < channels ? load_wide(source + channel * channel_stride) : Vec<T>{};
    }
    transpose<T>(square);
#pragma GCC unroll 16
    for (int k = 0; k < kWidth<T>; ++k) store(cells + k * kLanes<T> + part * kWidth<T>, square[k]);
  }
}

template <bool STREAMS, typename S, typename T>
DETLAB_INLINE void unpack_square(const T* cells, int64_t channel_stride, int channels, S* target) {
#pragma GCC unroll 4
  for (int part = 0; part < kParts; ++part) {
    Vec<T> square[kWidth<T>];
#pragma GCC unroll 16
    for (int k = 0; k < kWidth<T>; ++k) square[k] = load(cells + k * kLanes<T> + part * kWidth<T>);
    transpose<T>(square);
#pragma GCC unroll 16
    for (int k = 0; k < kWidth<T>; ++k) {
      const int channel = part * kWidth<T> + k;
      if (channel >= channels) continue;
      if (STREAMS) {
        stream_line(&square[k], target + channel * channel_stride);
      } else {
        store_narrow(target + channel * channel_stride, square[k]);
      }
    }
  }
}

constexpr int kPrefetch = 128;  // numbers ahead

template <typename S, typename T>
DETLAB_INLINE void pack_squares(const S* source, int64_t channel_stride, int64_t positions, int channels, T* cells) {
  constexpr int width = kWidth<T>;
  for (int64_t p = 0; p < positions; p += width) {
    // The last square is moved back to end with the row; it rewrites some cells with what they hold.
    const int64_t start = p + width <= positions ? p : positions - width;
    for (int channel = 0; channel < channels; ++channel) {
      __builtin_prefetch(source + channel * channel_stride + start + kPrefetch);
    }
    pack_square(source + start, channel_stride, channels, cells + start * kLanes<T>);
  }
}

// Whether the rows of a square begin on lines and fill them.
template <typename S, typename T>
DETLAB_INLINE bool fills_lines(int64_t channel_stride, const S* target) {
  return kParts == 1 && sizeof(S) == sizeof(T) && bytes_to_next_line(target) == 0 &&
         channel_stride * static_cast<int64_t>(sizeof(S)) % kLineBytes == 0;
}

template <bool STREAMS, typename S, typename T>
DETLAB_INLINE void unpack_squares(const T* cells, int64_t channel_stride, int64_t positions, int channels, S* target) {
  constexpr int width = kWidth<T>;
  int64_t p = 0;
  if (STREAMS && fills_lines<S, T>(channel_stride, target)) {
    for (; p + width <= positions; p += width) {
      unpack_square<kParts == 1>(cells + p * kLanes<T>, channel_stride, channels, target + p);
    }
  }
  for (; p < positions; p += width) {
    const int64_t start = p + width <= positions ? p : positions - width;
    unpack_square<false>(cells + start * kLanes<T>, channel_stride, channels, target + start);
  }
}

template <typename S, typename T>
void pack(const S* source, int64_t channel_stride, int64_t position_stride, int64_t positions, int channels, T* cells) {
  constexpr int lanes = kLanes<T>;
  if (position_stride == 1 && positions >= kWidth<T>) {
    if (channels == lanes) {
      pack_squares(source, channel_stride, positions, lanes, cells);
    } else {
      pack_squares(source, channel_stride, positions, channels, cells);
    }
  } else if (channel_stride == 1 && channels == lanes) {
    for (int64_t p = 0; p < positions; ++p) {
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        store(cells + p * lanes + part * kWidth<T>, load_wide(source + p * position_stride + part * kWidth<T>));
      }
    }
  } else {
    for (int64_t p = 0; p < positions; ++p) {
      for (int c = 0; c < lanes; ++c) {
        cells[p * lanes + c] =
            c < channels ? static_cast<T>(source[c * channel_stride + p * position_stride]) : static_cast<T>(0);
      }
    }
  }
}

template <bool STREAMS, typename S, typename T>
void unpack(const T* cells, int64_t channel_stride, int64_t position_stride, int64_t positions, int channels,
            S* target) {
  constexpr int lanes = kLanes<T>;
  if (position_stride == 1 && positions >= kWidth<T>) {
    if (channels == lanes) {
      unpack_squares<STREAMS>(cells, channel_stride, positions, lanes, target);
    } else {
      unpack_squares<STREAMS>(cells, channel_stride, positions, channels, target);
    }
  } else if (channel_stride == 1 && channels == lanes) {
    const bool lines = STREAMS && sizeof(S) == sizeof(T) && bytes_to_next_line(target) == 0 &&
                       position_stride * static_cast<int64_t>(sizeof(S)) % kLineBytes == 0;
    for (int64_t p = 0; p < positions; ++p) {
      if (lines) {
        stream_line(cells + p * lanes, target + p * position_stride);
        continue;
      }
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        store_narrow(target + p * position_stride + part * kWidth<T>, load(cells + p * lanes + part * kWidth<T>));
      }
    }
  } else {
    for (int64_t p = 0; p < positions; ++p) {
      for (int c = 0; c < channels; ++c) {
        target[c * channel_stride + p * position_stride] = static_cast<S>(cells[p * lanes + c]);
      }
    }
  }
}

// Suppression.

template <typename T>
constexpr T kRoundingSlack = sizeof(T) == 4 ? static_cast<T>(1e-6) : static_cast<T>(1e-15);

template <typename T>
bool overlaps_more(const T* const* kept, int k, const T* const* boxes, int64_t j, T threshold) {
  const T left = kept[0][k] > boxes[0][j] ? kept[0][k] : boxes[0][j];
  const T top = kept[1][k] > boxes[1][j] ? kept[1][k] : boxes[1][j];
  const T right = kept[2][k] < boxes[2][j] ? kept[2][k] : boxes[2][j];
  const T bottom = kept[3][k] < boxes[3][j] ? kept[3][k] : boxes[3][j];
  const T width = right > left ? right - left : 0;
  const T height = bottom > top ? bottom - top : 0;
  const T inter = width * height;
  return inter / (kept[4][k] + boxes[4][j] - inter) > threshold;
}

template <typename T>
bool overlaps_any(const T* const* kept, int num_kept, const T* const* boxes, int64_t j, T threshold) {
  for (int k = 0; k < num_kept; ++k) {
    if (overlaps_more(kept, k, boxes, j, threshold)) return true;
  }
  return false;
}

// Division is slow, so overlaps are compared as products; only where rounding could matter is the quotient formed.
// Looks at the boxes [j, last), at most a vector full; a whole vector can be read.
template <typename T>
DETLAB_INLINE void suppress_vector(const T* const* kept, int num_kept, const T* const* boxes, int64_t j, int64_t last,
                                   T threshold, uint8_t* dead) {
  const Vec<T> x1 = load(boxes[0] + j), y1 = load(boxes[1] + j), x2 = load(boxes[2] + j), y2 = load(boxes[3] + j);
  const Vec<T> area = load(boxes[4] + j), zero = {};
  const Vec<T> surely = splat(threshold * (1 + kRoundingSlack<T>)),
               perhaps = splat(threshold * (1 - kRoundingSlack<T>));
  const unsigned wanted = last - j < kWidth<T> ? (1u << (last - j)) - 1 : kAllBits<T>;
  Mask<T> sure = {}, possible = {};
  for (int k = 0; k < num_kept; ++k) {
    const Vec<T> width = smaller<T>(x2, splat(kept[2][k])) - larger<T>(x1, splat(kept[0][k]));
    const Vec<T> height = smaller<T>(y2, splat(kept[3][k])) - larger<T>(y1, splat(kept[1][k]));
    const Vec<T> inter = larger<T>(width, zero) * larger<T>(height, zero);
    const Vec<T> either = splat(kept[4][k]) + area - inter;
    // In this order what is not a number stays so, and nothing is more.
    sure |= inter > larger<T>(zero, surely * either);
    possible |= inter > larger<T>(zero, perhaps * either);
    if (k % 16 == 15 && (bits(sure) & wanted) == wanted) break;
  }
  const unsigned certain = bits(sure) & wanted;
  for (unsigned left = certain; left != 0; left &= left - 1) dead[j + __builtin_ctz(left)] = 1;
  for (unsigned left = bits(possible) & wanted & ~certain; left != 0; left &= left - 1) {
    const int64_t open = j + __builtin_ctz(left);
    dead[open] |= overlaps_any(kept, num_kept, boxes, open, threshold);
  }
}

template <typename T>
void suppress(const T* const* kept, int num_kept, const T* const* boxes, int64_t first, int64_t last, T threshold,
              uint8_t* dead) {
  if (threshold >= 0) {
    for (int64_t j = first; j < last; j += kWidth<T>) suppress_vector(kept, num_kept, boxes, j, last, threshold, dead);
    return;
  }
  for (int64_t j = first; j < last; ++j) dead[j] |= overlaps_any(kept, num_kept, boxes, j, threshold);
}

// Rotated boxes. In the frame of the first box, where it is axis-aligned, the area under an edge of the second, cut to
// the first, has a closed form; summed with sign around the second box it gives the area common to both (Green's
// theorem), with no polygon to build or to sort.

template <typename T>
DETLAB_INLINE Vec<T> clamp(Vec<T> value, Vec<T> low, Vec<T> high) {
  return smaller<T>(larger<T>(value, low), high);
}

template <typename T>
DETLAB_INLINE Vec<T> area_under_edge(Vec<T> x0, Vec<T> y0, Vec<T> x1, Vec<T> y1, Vec<T> half_w, Vec<T> half_h) {
  const Vec<T> zero = {}, one = splat(static_cast<T>(1)), full = half_h + half_h;
  const Vec<T> enter = clamp<T>(x0, -half_w, half_w), leave = clamp<T>(x1, -half_w, half_w);
  const Vec<T> run = x1 - x0;
  const Vec<T> slope = run != zero ? (y1 - y0) / run : zero;
  const Vec<T> at_enter = y0 + (enter - x0) * slope + half_h, at_leave = y0 + (leave - x0) * slope + half_h;
  const Vec<T> low = smaller<T>(at_enter, at_leave), high = larger<T>(at_enter, at_leave);
  const Vec<T> tiny = splat(sizeof(T) == 4 ? static_cast<T>(1.17549435e-38) : static_cast<T>(2.2250738585072014e-308));
  const Vec<T> per_rise = one / larger<T>(high - low, tiny);
  const Vec<T> below = clamp<T>(-low * per_rise, zero, one), up_to_top = clamp<T>((full - low) * per_rise, zero, one);
  const Vec<T> middle = (clamp<T>(low, zero, full) + clamp<T>(high, zero, full)) / 2;
  return (leave - enter) * ((up_to_top - below) * middle + (one - up_to_top) * full);
}

template <typename T>
DETLAB_INLINE Vec<T> iou_vector(const T* const* a, int64_t row, const T* const* b, int64_t j) {
  const Vec<T> cos_a = splat(a[4][row]), sin_a = splat(a[5][row]), cos_b = load(b[4] + j), sin_b = load(b[5] + j);
  const Vec<T> dx = load(b[0] + j) - a[0][row], dy = load(b[1] + j) - a[1][row];
  const Vec<T> half_w = splat(a[2][row]), half_h = splat(a[3][row]), b_half_w = load(b[2] + j),
               b_half_h = load(b[3] + j);
  // Angles are counter-clockwise as seen, in coordinates whose y points down.
  const Vec<T> x = dx * cos_a - dy * sin_a, y = dx * sin_a + dy * cos_a;
  const Vec<T> cos = cos_b * cos_a + sin_b * sin_a, sin = sin_b * cos_a - cos_b * sin_a;
  const Vec<T> along_x = b_half_w * cos, along_y = -b_half_w * sin, across_x = b_half_h * sin,
               across_y = b_half_h * cos;
  const Vec<T> xs[4] = {x + along_x + across_x, x - along_x + across_x, x - along_x - across_x, x + along_x - across_x};
  const Vec<T> ys[4] = {y + along_y + across_y, y - along_y + across_y, y - along_y - across_y, y + along_y - across_y};
  const Vec<T> zero = {};
  Vec<T> signed_area = {};
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    const int next = (k + 1) % 4;
    signed_area += area_under_edge<T>(xs[k], ys[k], xs[next], ys[next], half_w, half_h);
  }
  const Vec<T> area_a = 4 * half_w * half_h, area_b = 4 * b_half_w * b_half_h;
  const Vec<T> inter = smaller<T>(larger<T>(signed_area, -signed_area), smaller<T>(area_a, area_b));
  const Vec<T> either = area_a + area_b - inter;
  // The parts of boxes that do not meet cancel up to rounding.
  const Vec<T> noise = area_a * (sizeof(T) == 4 ? static_cast<T>(2e-6) : static_cast<T>(4e-15));
  return ((inter > noise) & (either > zero)) ? inter / either : zero;
}

// The last boxes of a set, fewer than a vector holds, in planes of their own.
template <typename T>
struct Remainder {
  T numbers[kRotatedPlanes][kWidth<T>];
  const T* planes[kRotatedPlanes];

  Remainder(const T* const* boxes, int64_t first, int64_t count) {
    std::memset(numbers, 0, sizeof(numbers));
    for (int plane = 0; plane < kRotatedPlanes; ++plane) {
      std::memcpy(numbers[plane], boxes[plane] + first, sizeof(T) * count);
      planes[plane] = numbers[plane];
    }
  }
};

template <typename T>
void iou_rotated(const T* const* boxes1, int64_t row, const T* const* boxes2, int64_t count, T* ious) {
  int64_t j = 0;
  for (; j + kWidth<T> <= count; j += kWidth<T>) store(ious + j, iou_vector(boxes1, row, boxes2, j));
  if (j == count) return;
  const Remainder<T> rest(boxes2, j, count - j);
  const Vec<T> last = iou_vector(boxes1, row, rest.planes, 0);
  for (int lane = 0; j + lane < count; ++lane) ious[j + lane] = last[lane];
}

// One bit for each box of a vector. Boxes whose surrounding circles are apart are not looked at closely.
template <typename T>
DETLAB_INLINE unsigned suppressed_bits(const T* const* kept, int num_kept, const T* const* boxes, int64_t j,
                                       T threshold) {
  const Vec<T> x = load(boxes[0] + j), y = load(boxes[1] + j), radius = load(boxes[6] + j);
  unsigned gone = 0;
  for (int k = 0; k < num_kept; ++k) {
    const Vec<T> dx = x - kept[0][k], dy = y - kept[1][k], reach = (radius + kept[6][k]) * static_cast<T>(1.0001);
    const unsigned near = threshold < 0 ? kAllBits<T> : bits(dx * dx + dy * dy <= reach * reach);
    if ((near & ~gone) != 0) gone |= bits(iou_vector(kept, k, boxes, j) > splat(threshold));
    if (gone == kAllBits<T>) break;
  }
  return gone;
}

template <typename T>
void suppress_rotated(const T* const* kept, int num_kept, const T* const* boxes, int64_t first, int64_t last,
                      T threshold, uint8_t* dead) {
  for (int64_t j = first; j < last; j += kWidth<T>) {
    const int count = last - j < kWidth<T> ? static_cast<int>(last - j) : kWidth<T>;
    unsigned gone;
    if (count == kWidth<T>) {
      gone = suppressed_bits(kept, num_kept, boxes, j, threshold);
    } else {
      const Remainder<T> rest(boxes, j, count);
      gone = suppressed_bits(kept, num_kept, rest.planes, 0, threshold);
    }
    for (int lane = 0; lane < count; ++lane) dead[j + lane] |= gone >> lane & 1;
  }
}

// Matching. The overlaps of upright boxes are those of box_iou in Python, bit for bit: what is no number counts as 0.

template <typename T>
struct UprightObject {
  Vec<T> x1, y1, x2, y2, area;

  UprightObject(const T* const* objects, Index<T> row)
      : x1(splat(objects[0][row])),
        y1(splat(objects[1][row])),
        x2(splat(objects[2][row])),
        y2(splat(objects[3][row])),
        area(splat(objects[4][row])) {}

  DETLAB_INLINE Vec<T> overlaps(const T* const* boxes, int64_t j) const {
    const Vec<T> zero = {};
    const Vec<T> width = smaller<T>(x2, load(boxes[2] + j)) - larger<T>(x1, load(boxes[0] + j));
    const Vec<T> height = smaller<T>(y2, load(boxes[3] + j)) - larger<T>(y1, load(boxes[1] + j));
    const Vec<T> shared = larger<T>(width, zero) * larger<T>(height, zero);
    // Most pairs are apart, and a division is slow.
    if (bits(shared > zero) == 0) return zero;
    const Vec<T> ratio = shared / (area + load(boxes[4] + j) - shared);
    return ((shared > zero) & (ratio - ratio == zero)) ? ratio : zero;
  }
};

template <typename T>
struct TurnedObject {
  const T* const* objects;
  Index<T> row;

  TurnedObject(const T* const* objects, Index<T> row) : objects(objects), row(row) {}

  DETLAB_INLINE Vec<T> overlaps(const T* const* boxes, int64_t j) const { return iou_vector(objects, row, boxes, j); }
};

template <typename Object, typename T>
T match(const T* const* objects, Index<T> row, const T* const* boxes, int64_t count, T* best, Index<T>* best_row) {
  const Object object(objects, row);
  const Mask<T> own_row = row - Mask<T>{};
  Vec<T> largest = {};
  for (int64_t j = 0; j < count; j += kWidth<T>) {
    const Vec<T> overlaps = object.overlaps(boxes, j), before = load(best + j);
    const Mask<T> is_better = overlaps > before;
    largest = larger<T>(largest, overlaps);
    if (bits(is_better) == 0) continue;
    Mask<T> rows;
    std::memcpy(&rows, best_row + j, sizeof(rows));
    rows = is_better ? own_row : rows;
    std::memcpy(best_row + j, &rows, sizeof(rows));
    store(best + j, is_better ? overlaps : before);
  }
  T result = 0;
  for (int lane = 0; lane < kWidth<T>; ++lane) result = largest[lane] > result ? largest[lane] : result;
  return result;
}

template <typename Object, typename T>
void mark(const T* const* objects, Index<T> row, const T* const* boxes, int64_t count, T overlap, uint8_t* is_equal) {
  const Object object(objects, row);
  for (int64_t j = 0; j < count; j += kWidth<T>) {
    for (unsigned left = bits(object.overlaps(boxes, j) == splat(overlap)); left != 0; left &= left - 1) {
      is_equal[j + __builtin_ctz(left)] = 1;
    }
  }
}

// Cropping bitmaps.

// For each column of a bitmap the weights of the rows in which it is inside, summed in their order.
DETLAB_INLINE void sum_inside(const uint8_t* bitmap, int64_t row_stride, const int32_t* rows, const float* weights,
                              int num_rows, int32_t num_columns, float* sums) {
  typedef uint8_t Bytes __attribute__((vector_size(DETLAB_VECTOR_BYTES / 4)));
  constexpr int width = kWidth<float>;
  int32_t column = 0;
  for (; column + width <= num_columns; column += width) {
    Vec<float> acc = {};
    for (int tap = 0; tap < num_rows; ++tap) {
      Bytes bytes;
      std::memcpy(&bytes, bitmap + rows[tap] * row_stride + column, sizeof(bytes));
      const Mask<float> inside = __builtin_convertvector(bytes, Mask<float>) != 0;
      acc += inside ? splat(weights[tap]) : Vec<float>{};
    }
    store(sums + column, acc);
  }
  for (; column < num_columns; ++column) {
    float acc = 0;
    for (int tap = 0; tap < num_rows; ++tap) acc += bitmap[rows[tap] * row_stride + column] != 0 ? weights[tap] : 0.0f;
    sums[column] = acc;
  }
}

DETLAB_INLINE float fused(float a, float b, float c) {
#if DETLAB_VECTOR_BYTES > 16
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// In the order, and rounded as, pool_forward adds up the same bitmap as a feature map.
void crop(const RegionTaps<float>& taps, const uint8_t* bitmap, int64_t row_stride, int32_t first_column,
          int32_t num_columns, float threshold, float* sums, uint8_t* target) {
  for (int i = 0; i < taps.bins_h; ++i) {
    const int32_t first_row = taps.row_starts[i];
    sum_inside(bitmap + first_column, row_stride, taps.rows + first_row, taps.row_weights + first_row,
               taps.row_starts[i + 1] - first_row, num_columns, sums);
    for (int j = 0; j < taps.bins_w; ++j) {
      float sum = 0;
      for (int32_t tap = taps.column_starts[j]; tap < taps.column_starts[j + 1]; ++tap) {
        sum = fused(taps.column_weights[tap], sums[taps.columns[taps.column_slots[tap]] - first_column], sum);
      }
      target[i * taps.bins_w + j] = sum >= threshold ? 1 : 0;
    }
  }
}

// Pasting.

template <typename T>
DETLAB_INLINE T mixed(const T* line, int32_t left, T share) {
  return line[left] * (1 - share) + line[left + 1] * share;
}

template <typename T>
void threshold_row(const T* line, const int32_t* left, const T* share, int64_t count, T threshold, uint8_t* pixels) {
  for (int64_t i = 0; i < count; ++i) pixels[i] = mixed(line, left[i], share[i]) >= threshold ? 1 : 0;
}

template <typename T>
void soft_row(const T* line, const int32_t* left, const T* share, int64_t count, uint8_t* pixels) {
  for (int64_t i = 0; i < count; ++i) {
    pixels[i] = static_cast<uint8_t>(static_cast<int32_t>(mixed(line, left[i], share[i]) * 255));
  }
}

template <typename T>
constexpr PoolKernels<T> kPool = {pool_forward<T>, pool_backward<T>, pool_gather<T>, pool_scatter<T>};
template <typename S, typename T>
constexpr PackKernels<S, T> kPack = {pack<S, T>, unpack<false, S, T>, unpack<true, S, T>};
template <typename T>
constexpr BoxKernels<T> kBoxes = {suppress<T>,
                                  suppress_rotated<T>,
                                  iou_rotated<T>,
                                  match<UprightObject<T>, T>,
                                  match<TurnedObject<T>, T>,
                                  mark<UprightObject<T>, T>,
                                  mark<TurnedObject<T>, T>};
template <typename T>
constexpr PasteKernels<T> kPaste = {threshold_row<T>, soft_row<T>};

}  // namespace

extern const SimdKernels DETLAB_TABLE;
const SimdKernels DETLAB_TABLE = {
    DETLAB_NAME,
    stream,
    finish_streaming,
    kPool<float>,
    kPool<double>,
    kPack<float, float>,
    kPack<double, double>,
    kPack<Half, float>,
    kPack<BFloat16, float>,
    kBoxes<float>,
    kBoxes<double>,
    kPaste<float>,
    kPaste<double>,
    {crop},
};

}  // namespace detlab
