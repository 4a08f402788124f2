// Package bench measures Quarry beside what it is compared with, in one run, on
// one cluster: this is how ratios are made that mean something on a noisy
// machine. `make bench` runs it on a testbed of its own.
//
// Nothing here fails for being slow. Things that are compared are measured in
// turns, so that whatever else the machine does is in all of them, and what is
// reported is a median with a ratio to the floor.
package bench
