# `gif` with the CPUs the other way round.
#define SECOND
#include "gif.S"
