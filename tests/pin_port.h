/* SPDX-License-Identifier: MIT
 * pin_port.h - owns the port of a kernel of one CPU that preempts itself, and masks nothing
 * (KSLAB_CFG_HEADER).
 * Rank: test helper.
 */
#ifndef PIN_PORT_H
#define PIN_PORT_H

extern unsigned pin_port_pins; /* depth of KSLAB_PORT_PIN */

#define KSLAB_PORT_PIN() ((void)pin_port_pins++)
#define KSLAB_PORT_UNPIN() ((void)pin_port_pins--)

#endif
