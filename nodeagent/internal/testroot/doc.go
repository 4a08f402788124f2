// Package testroot is what tests that need root have in common: images, loop
// devices, mounts and other mount namespaces, each cleaned up when the test
// ends, also when it fails.
//
// It works with the system's own tools (losetup, mount, mkfs) and not with the
// packages next door, for two reasons: those packages use it in their own
// tests, and a test should not be judged by the code that it is testing.
//
// It touches only what it made: loop devices over its own images, mounts below
// its own temporary directories, processes it started.
package testroot
