package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// maxBytes bounds what Load reads; a ConfigMap can't be larger either.
const maxBytes = 1 << 20

// What a field that is not given means.
const (
	DefaultReserve = "5%"
	// DefaultSharedReserve is kept free where the system, or kubelet, has the
	// same filesystem: more than kubelet's own thresholds (nodefs.available
	// 10%, imagefs.available 15%), at which it evicts pods.
	DefaultSharedReserve = "20%"
	DefaultOvercommit    = "1.0"
	DefaultFilesystem    = "ext4"
	DefaultHeavyJobs     = 2
)

// Config is the agents' configuration, the same file on all nodes.
type Config struct {
	// Pools are the pools of every node that Nodes does not name.
	Pools []Pool `yaml:"pools"`
	// Nodes holds, by node name, what is different there.
	Nodes map[string]Node `yaml:"nodes"`
	// ByClaimIndex: keep links named by namespace and claim beside the volumes,
	// for people who look at the disk.
	ByClaimIndex bool `yaml:"byClaimIndex"`
	// HeavyJobs is how many jobs that load the disk (mkfs, copies, scrubs) run
	// at the same time on one filesystem.
	HeavyJobs int `yaml:"heavyJobs"`
}

// Node is what is particular to one node.
type Node struct {
	// Pools replaces the common list. Empty or not given: the node has no
	// pools.
	Pools []Pool `yaml:"pools"`
}

// Pool is a directory that volumes are carved out of.
type Pool struct {
	// Name is a DNS label, unique on its node. It has no dot, so that
	// "<node>.<pool>" can be read only one way.
	Name string `yaml:"name"`
	// Path is absolute and clean.
	Path string `yaml:"path"`
	// Labels are what a class's poolSelector chooses by.
	Labels map[string]string `yaml:"labels"`
	// Reserve is never promised to volumes.
	Reserve Reserve `yaml:"reserve"`
	// Overcommit is how many times what is left may be promised.
	Overcommit Overcommit `yaml:"overcommit"`
	// DefaultFilesystem is made in loop images whose class names none: ext4,
	// xfs or btrfs.
	DefaultFilesystem string `yaml:"defaultFilesystem"`
	// RequireMountpoint: use Path only when it is a mount point.
	RequireMountpoint bool `yaml:"requireMountpoint"`
	// EnableQuota: turn simple quotas on where the pool's filesystem is btrfs
	// and has quotas off. It concerns the whole filesystem, so it is not done
	// unasked.
	EnableQuota bool `yaml:"enableQuota"`
	// AllowNetworkFilesystem: use Path also on a network or cluster filesystem.
	// No other node may have a pool in the same directory.
	AllowNetworkFilesystem bool `yaml:"allowNetworkFilesystem"`
	// PurgeUnderPressure: trash may be freed before its time when space runs
	// out.
	PurgeUnderPressure bool `yaml:"purgeUnderPressure"`
}

// Default is the configuration of an empty file but for its pools: one pool
// named "default" at path.
func Default(path string) (*Config, error) {
	c := &Config{Pools: []Pool{{Name: "default", Path: path}}, ByClaimIndex: true}
	c.setDefaults()
	if err := c.validate(); err != nil {
		return nil, err
	}
	return c, nil
}

// Load reads a configuration, fills in what is not given and checks all of it.
// All that is wrong is reported at once: the error wraps one *FieldError each.
func Load(r io.Reader) (*Config, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read the agent's configuration: %w", err)
	}
	if len(text) > maxBytes {
		return nil, fmt.Errorf("the agent's configuration is larger than %d bytes", maxBytes)
	}
	c, err := parse(text)
	if err == nil {
		c.setDefaults()
		err = c.validate()
	}
	if err != nil {
		return nil, fmt.Errorf("the agent's configuration: %w", err)
	}
	return c, nil
}

// LoadFile is Load of the file at path.
func LoadFile(path string) (*Config, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return Load(file)
}

// PoolsOf returns the pools of the node: its own list if it has one, else the
// common one.
func (c *Config) PoolsOf(node string) []Pool {
	if n, ok := c.Nodes[node]; ok {
		return slices.Clone(n.Pools)
	}
	return slices.Clone(c.Pools)
}

func parse(text []byte) (*Config, error) {
	docs, err := documents(text)
	if err != nil {
		return nil, err
	}
	c := &Config{ByClaimIndex: true}
	if len(docs) == 0 {
		return c, nil
	}
	if len(docs) > 1 {
		return nil, errors.New("one YAML document is expected, there are more")
	}
	if err := known(&docs[0]); err != nil {
		return nil, err
	}
	if err := docs[0].Decode(c); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Config) setDefaults() {
	if c.HeavyJobs == 0 {
		c.HeavyJobs = DefaultHeavyJobs
	}
	for i := range c.Pools {
		c.Pools[i].setDefaults()
	}
	for _, n := range c.Nodes {
		for i := range n.Pools {
			n.Pools[i].setDefaults()
		}
	}
}

func (p *Pool) setDefaults() {
	if p.Reserve.text == "" {
		p.Reserve = must(ParseReserve(DefaultReserve))
		p.Reserve.byDefault = true
	}
	if p.Overcommit.text == "" {
		p.Overcommit = must(ParseOvercommit(DefaultOvercommit))
	}
	if p.DefaultFilesystem == "" {
		p.DefaultFilesystem = DefaultFilesystem
	}
}

// must is for the constants above, which the tests parse.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
