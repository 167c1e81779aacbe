# `twice` with the way round.
#define BOUNCE
#include "twice.S"
