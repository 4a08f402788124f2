// Package bench measures Quarry beside what it is compared with, in one run, on one cluster: this is how ratios are made that
// mean something on a noisy machine. `make bench` runs it on a testbed of its own.
package bench
