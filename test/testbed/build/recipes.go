package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/quarry-storage/quarry/test/debian"
	"github.com/quarry-storage/quarry/test/testbed/image"
)

const containerdVersion = "v2.4.2"

// The images every node has. There is no registry behind these names.
const (
	PauseImage   = "localhost/quarry-testbed/pause:1"
	BusyboxImage = "localhost/quarry-testbed/busybox:1"
	EtcdImage    = "localhost/quarry-testbed/etcd:3.6"
)

// linkFlags drops symbol tables: half the size, and a fifth of the link time.
const linkFlags = "-s -w"

// Kube makes kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy, kubelet, kubectl, cluster-dns,
// etcd and etcdctl, and returns their directory.
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
		for name, value := range map[string]string{"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"} {
			flags += fmt.Sprintf(" -X %s.%s=%s", pkg, name, value)
		}
	}
	links := map[string]string{"etcdctl": "etcd"}
	for _, program := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl", "cluster-dns"} {
		links[program] = "kube"
	}
	return c.get(ctx, artifact{
		name: "kube", what: "Kubernetes " + version + " and etcd: 4 to 7 minutes on two cores if Go has none of it yet",
		key: newKey(linkFlags).files(module, "go.mod", "go.sum", "*.go", "dns/*.go", "etcd/*.go"),
		make: func(ctx context.Context, dir string) error {
			if err := c.goTool(ctx, module, nil, "build", "-v", "-trimpath", "-mod=readonly", "-ldflags", flags, "-o", dir+"/", ".", "./etcd"); err != nil {
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

// Containerd makes containerd, containerd-shim-runc-v2 and ctr, and returns their directory.
func (c *Cache) Containerd(ctx context.Context) (string, error) {
	const module = "github.com/containerd/containerd/v2"
	flags := linkFlags + " -X " + module + "/version.Version=" + containerdVersion
	const tags = "no_btrfs no_devmapper no_zfs"
	return c.get(ctx, artifact{
		name: "containerd", what: "containerd " + containerdVersion + ": about a minute",
		key: newKey(flags, tags, containerdVersion),
		make: func(ctx context.Context, dir string) error {
			arguments := []string{"install", "-v", "-trimpath", "-tags", tags, "-ldflags", flags}
			for _, command := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
				arguments = append(arguments, module+"/cmd/"+command+"@"+containerdVersion)
			}
			return c.goTool(ctx, dir, []string{"GOBIN=" + dir}, arguments...)
		},
	})
}

// Tools makes helm, csi-sanity and the CSI sidecars, everything on the tool lines of tools/go.mod, and returns
// their directory.
func (c *Cache) Tools(ctx context.Context) (string, error) {
	module := filepath.Join(c.Source, "tools")
	return c.get(ctx, artifact{
		name: "tools", what: "helm, csi-sanity and the CSI sidecars: 2 to 3 minutes",
		key: newKey(linkFlags).files(module, "go.mod", "go.sum"),
		make: func(ctx context.Context, dir string) error {
			return c.goTool(ctx, module, nil, "build", "-v", "-trimpath", "-mod=readonly", "-ldflags", linkFlags, "-o", dir+"/", "tool")
		},
	})
}

// Images makes the tarballs of PauseImage, BusyboxImage and EtcdImage, and returns their directory.
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
		key: newKey(linkFlags, filepath.Base(kube)).files(c.Source, "cmd/pause/*.go", "testbed/image/*.go", "testbed/build/recipes.go").files("/", busybox),
		make: func(ctx context.Context, dir string) error {
			pause := filepath.Join(dir, "pause")
			if err := c.goTool(ctx, c.Source, nil, "build", "-trimpath", "-ldflags", linkFlags, "-o", pause, "./cmd/pause"); err != nil {
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
	server.Files = append(server.Files[:len(server.Files):len(server.Files)], image.File{Path: "/usr/local/bin/etcd", Source: etcd, Mode: 0o755})
	server.Links = append(server.Links[:len(server.Links):len(server.Links)], image.Link{Path: "/usr/local/bin/etcdctl", Target: "etcd"})
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
