/* SPDX-License-Identifier: MIT
 * valgrind_port.h - owns what tells Valgrind's memcheck of slots and redzones (KSLAB_CFG_HEADER).
 * Rank: test helper.  The library is a shared object, whose own looks at free memory kslab.supp
 * lets pass.
 */
#ifndef VALGRIND_PORT_H
#define VALGRIND_PORT_H

#include <valgrind/memcheck.h>

#define KSLAB_PORT_POISON(mem, bytes) (void)VALGRIND_MAKE_MEM_NOACCESS((mem), (bytes))
#define KSLAB_PORT_UNPOISON(mem, bytes) (void)VALGRIND_MAKE_MEM_UNDEFINED((mem), (bytes))

#endif
