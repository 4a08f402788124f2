// Package measure is what the benchmarks measure with: times of claims as a
// watch sees them, processor and memory of processes, requests that the API
// server counted, and tables and plots of what was found.
//
// A figure of a busy machine says little by itself, so everything is made to be
// compared with something else that was measured in the same run: a provisioner
// that does no work (Floor), an empty cluster, a directory of the host.
package measure
