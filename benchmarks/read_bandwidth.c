/* Reads memory, to measure its bandwidth. Words are added up in eight registers, which takes less
 * time than loading them. */
#if defined(__AVX512F__)
typedef unsigned long Vec __attribute__((vector_size(64)));
#elif defined(__AVX2__)
typedef unsigned long Vec __attribute__((vector_size(32)));
#else
typedef unsigned long Vec __attribute__((vector_size(16)));
#endif

enum { kChains = 8 };

/* Return a value that depends on all bytes, up to the last whole step. */
unsigned long read_all(const char* data, long bytes) {
  Vec sums[kChains] = {{0}};
  for (long at = 0; at + (long)sizeof sums <= bytes; at += sizeof sums) {
    for (int i = 0; i < kChains; ++i) {
      Vec words;
      __builtin_memcpy(&words, data + at + i * sizeof words, sizeof words);
      sums[i] += words;
    }
  }
  for (int i = 1; i < kChains; ++i) sums[0] += sums[i];
  return sums[0][0];
}
