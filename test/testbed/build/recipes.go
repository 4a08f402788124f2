package build

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/quarry-storage/quarry/test/debian"
	"github.com/quarry-storage/quarry/test/testbed/image"
)

// The images every node has. There is no registry behind these names.
const (
	PauseImage   = "localhost/quarry-testbed/pause:1"
	BusyboxImage = "localhost/quarry-testbed/busybox:1"
	EtcdImage    = "localhost/quarry-testbed/etcd:3.6"
)

// linkFlags drops symbol tables: half the size, and a fifth of the link time.
//
// Nothing else is said to the compiler, here or in the Makefile, and all
// modules ask for the same versions of what they share (a test compares them):
// so each package is compiled once, whichever program needs it first.
const linkFlags = "-s -w"

// Kube makes kube-apiserver, kube-controller-manager, kube-scheduler,
// kube-proxy, kubelet, kubectl, cluster-dns, etcd and etcdctl, and returns
// their directory.
func (c *Cache) Kube(ctx context.Context) (string, error) {
	module := filepath.Join(c.Source, "kube")
	version, err := moduleVersion(filepath.Join(module, "go.mod"), "k8s.io/kubernetes")
	if err != nil {
		return "", err
	}
	flags := linkFlags
	major, minor, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ = strings.Cut(minor, ".")
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		for name, value := range map[string]string{"gitVersion": version, "gitMajor": major, "gitMinor": minor,
			"gitTreeState": "clean"} {
			flags += fmt.Sprintf(" -X %s.%s=%s", pkg, name, value)
		}
	}
	links := map[string]string{"etcdctl": "etcd"}
	for _, program := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy",
		"kubelet", "kubectl", "cluster-dns"} {
		links[program] = "kube"
	}
	return c.get(ctx, artifact{
		name: "kube", what: "Kubernetes " + version + " and etcd: 4 to 6 minutes on two cores if Go has none of it yet",
		key: newKey(linkFlags).files(module, "go.mod", "go.sum", "*.go", "dns/*.go", "etcd/*.go"),
		make: func(ctx context.Context, dir string) error {
			if err := c.goBuild(ctx, module, flags, dir+"/", ".", "./etcd"); err != nil {
				return err
			}
			for name, target := range links {
				if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
					return err
				}
			}
			return nil
		},
	})
}

// Containerd makes containerd, containerd-shim-runc-v2 and ctr, and returns
// their directory.
func (c *Cache) Containerd(ctx context.Context) (string, error) {
	const (
		path = "github.com/containerd/containerd/v2"
		tags = "no_btrfs no_devmapper no_zfs"
	)
	module := filepath.Join(c.Source, "containerd")
	version, err := moduleVersion(filepath.Join(module, "go.mod"), path)
	if err != nil {
		return "", err
	}
	flags := linkFlags + " -X " + path + "/version.Version=" + version

	return c.get(ctx, artifact{
		name: "containerd", what: "containerd " + version + ": about a minute",
		key: newKey(flags, tags).files(module, "go.mod", "go.sum"),
		make: func(ctx context.Context, dir string) error {
			return c.goBuild(ctx, module, flags, dir+"/", "-tags", tags, "tool")
		},
	})
}

// tool is a program that is built by itself, from a module's tool line.
type tool struct{ module, pkg string }

// The tools by name. Helm's libraries are those of the tests, and so of
// Quarry; each sidecar is compiled against its own version of Kubernetes'.
var tools = map[string]tool{
	"helm":                {".", "helm.sh/helm/v3/cmd/helm"},
	"csi-sanity":          {"tools", "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"},
	"csi-provisioner":     {"tools", "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner"},
	"csi-resizer":         {"tools", "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer"},
	"csi-snapshotter":     {"tools", "github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter"},
	"snapshot-controller": {"tools", "github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller"},
}

// Tool makes one of the tools and returns its path: the demo needs helm, and
// does not wait for the others.
func (c *Cache) Tool(ctx context.Context, name string) (string, error) {
	t, ok := tools[name]
	if !ok {
		return "", fmt.Errorf("the testbed has no tool %q; it has %s",
			name, strings.Join(slices.Sorted(maps.Keys(tools)), ", "))
	}
	module := filepath.Join(c.Source, t.module)

	dir, err := c.get(ctx, artifact{
		name: "tool-" + name, what: name + ": a minute or less",
		key: newKey(linkFlags, t.pkg).files(module, "go.mod", "go.sum"),
		make: func(ctx context.Context, dir string) error {
			return c.goBuild(ctx, module, linkFlags, filepath.Join(dir, name), t.pkg)
		},
	})
	return filepath.Join(dir, name), err
}

// Tools makes every tool and returns their paths.
func (c *Cache) Tools(ctx context.Context) ([]string, error) {
	var paths []string
	for _, name := range slices.Sorted(maps.Keys(tools)) {
		path, err := c.Tool(ctx, name)
		if err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// Images makes the tarballs of PauseImage, BusyboxImage and EtcdImage, and
// returns their directory.
func (c *Cache) Images(ctx context.Context) (string, error) {
	kube, err := c.Kube(ctx)
	if err != nil {
		return "", err
	}
	busybox, err := debian.Static(debian.Need{Program: "busybox", Package: "busybox-static"})
	if err != nil {
		return "", err
	}
	return c.get(ctx, artifact{
		name: "images", what: "the container images pause, busybox and etcd",
		key: newKey(linkFlags, filepath.Base(kube)).files(c.Source, "cmd/pause/*.go", "testbed/image/*.go",
			"testbed/build/recipes.go").files("/", busybox),
		make: func(ctx context.Context, dir string) error {
			pause := filepath.Join(dir, "pause")
			if err := c.goBuild(ctx, c.Source, linkFlags, pause, "./cmd/pause"); err != nil {
				return err
			}
			images, err := imagesOf(ctx, pause, busybox, filepath.Join(kube, "etcd"))
			if err != nil {
				return err
			}
			for name, image := range images {
				if err := image.WriteFile(filepath.Join(dir, name+".tar")); err != nil {
					return err
				}
			}
			return os.Remove(pause)
		},
	})
}

func imagesOf(ctx context.Context, pause, busybox, etcd string) (map[string]image.Image, error) {
	list, err := exec.CommandContext(ctx, busybox, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its applets: %w", busybox, err)
	}
	shell := image.Image{
		Tags: []string{BusyboxImage, "docker.io/library/busybox:stable"},
		Env:  []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Dirs: []string{"/root", "/home"},
		Files: []image.File{
			{Path: "/bin/busybox", Source: busybox, Mode: 0o755},
			{Path: "/etc/passwd", Content: "root:x:0:0:root:/root:/bin/sh\n", Mode: 0o644},
			{Path: "/etc/group", Content: "root:x:0:\n", Mode: 0o644},
		},
		Cmd: []string{"sh"},
	}
	for applet := range strings.FieldsSeq(string(list)) {
		if applet != "bin/busybox" {
			shell.Links = append(shell.Links, image.Link{Path: "/" + applet, Target: "/bin/busybox"})
		}
	}
	server := shell
	server.Tags = []string{EtcdImage, "docker.io/library/etcd:3.6"}
	server.Files = append(server.Files[:len(server.Files):len(server.Files)], image.File{Path: "/usr/local/bin/etcd",
		Source: etcd, Mode: 0o755})
	server.Links = append(server.Links[:len(server.Links):len(server.Links)], image.Link{Path: "/usr/local/bin/etcdctl",
		Target: "etcd"})
	server.Cmd = []string{"etcd"}
	return map[string]image.Image{
		"pause": {
			Tags: []string{PauseImage}, User: "65535:65535", Entrypoint: []string{"/pause"},
			Files: []image.File{{Path: "/pause", Source: pause, Mode: 0o755}},
		},
		"busybox": shell,
		"etcd":    server,
	}, nil
}

func moduleVersion(goMod, module string) (string, error) {
	content, err := os.ReadFile(goMod)
	if err != nil {
		return "", err
	}
	match := regexp.MustCompile(`(?m)^(?:require)?\s+` + regexp.QuoteMeta(module) + ` (v\S+)`).FindSubmatch(content)
	if match == nil {
		return "", errors.New(goMod + " does not require " + module)
	}
	return string(match[1]), nil
}
