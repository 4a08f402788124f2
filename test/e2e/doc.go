// Package e2e tests Quarry as its users meet it: a real Kubernetes, the Helm
// chart, claims and pods.
//
// All tests share one cluster of three nodes, made by TestMain and taken away
// at the end. Every node has two filesystems of its own for pools: ext4 at
// /volumes and btrfs, with simple quotas, at /volumes-btrfs. Tests use a
// namespace each and leave nothing: after every test, `quarry verify` on every
// node finds nothing wrong.
//
// QUARRY_E2E_KEEP=1 leaves the cluster up afterwards, and uses the one that is
// up.
package e2e
