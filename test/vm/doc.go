// Package vm has no code: its tests run the node agent's tests on kernels that
// this machine does not have, in virtual machines (package machine), and cut
// their power.
package vm
