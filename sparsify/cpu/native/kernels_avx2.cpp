#define SPARSIFY_KERNELS kernels_avx2
#include "kernels.h"
