/* Multiplications and additions in registers, to measure the peak of a core. Today's x86 cores have
 * two units with a latency of 4 to 5 cycles, so that twelve independent chains keep them busy, and 16
 * registers hold them.
 */
#if defined(__AVX512F__)
typedef float Vec __attribute__((vector_size(64)));
#elif defined(__AVX__)
typedef float Vec __attribute__((vector_size(32)));
#else
typedef float Vec __attribute__((vector_size(16)));
#endif

enum { kChains = 12, kLanes = sizeof(Vec) / sizeof(float) };

/* Return the number of operations done; `sink` receives a value that depends on all of them. */
double fma_chains(long steps, float* sink) {
  Vec acc[kChains];
  const Vec a = (Vec){0} + 0.999f, b = (Vec){0} + 0.001f;
  for (int i = 0; i < kChains; ++i) acc[i] = (Vec){0} + (float)i;
  for (long s = 0; s < steps; ++s) {
    for (int i = 0; i < kChains; ++i) acc[i] = acc[i] * a + b;
  }
  Vec sum = acc[0];
  for (int i = 1; i < kChains; ++i) sum += acc[i];
  *sink = sum[0];
  return 2.0 * kChains * kLanes * (double)steps;
}
