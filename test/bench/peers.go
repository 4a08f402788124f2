package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/test/measure"
	"github.com/quarry-storage/quarry/test/testbed/build"
)

const (
	localPath          = "local-path"
	localPathNamespace = "local-path-storage"
	localPathDir       = "/volumes/local-path"
	localPathPlain     = "local-path-provisioner, as it comes"
	localPathWorkers   = "local-path-provisioner, 100 workers"
	// peerLimit is how long a variant may take; what it reached is kept.
	peerLimit = 12 * time.Minute
)

// peers measures rancher/local-path-provisioner beside Quarry's cheapest kind,
// as it comes and with as many workers as Quarry has. It runs on the machine
// and not in a pod, which makes it no slower.
func (b *bench) peers(ctx context.Context, s *Section) error {
	if err := b.prepareLocalPath(ctx); err != nil {
		return err
	}
	found := map[string]*life{"Quarry, directory, ext4, none": {}, "Quarry, image, ext4": {}}
	order := []string{"Quarry, directory, ext4, none", "Quarry, image, ext4"}
	for i, class := range []string{"bench-directory", "bench-image"} {
		if err := b.peer(ctx, class, found[order[i]]); err != nil {
			return err
		}
	}
	for _, variant := range []struct {
		name string
		args []string
	}{
		{localPathWorkers, []string{"--worker-threads=100"}},
		{localPathPlain, nil},
	} {
		stop, err := b.startLocalPath(ctx, variant.args)
		if err != nil {
			return err
		}
		found[variant.name] = &life{}
		order = append(order, variant.name)
		limited, cancel := context.WithTimeoutCause(ctx, peerLimit, fmt.Errorf("not within %s", peerLimit))
		err = b.peer(limited, localPath, found[variant.name])
		cancel()
		stop()
		if err != nil && ctx.Err() == nil {
			s.note("%s was given up: %v.", variant.name, err)
		} else if err != nil {
			return err
		}
	}

	t := s.table("", "one claim to Bound, median, ms", "one deleted, median, ms", "100 at once, s", "· per second",
		"100 deleted, s", "API server CPU, ms each", "requests each")
	bars := measure.Bars{Title: "100 claims at once, to the last one Bound", Unit: "s", Log: true}
	for _, name := range order {
		l := found[name]
		t.Row(name, measure.Milliseconds(l.One.Quantile(0.5)), measure.Milliseconds(l.Gone1.Quantile(0.5)),
			l.Hundred.Wall/1000, l.Hundred.Second,
			l.Deleted.Wall/1000, l.CPU["API server"], l.Requests.Total(isRequest))
		bars.Bars = append(bars.Bars, measure.Bar{Name: name, Value: l.Hundred.Wall / 1000})
	}
	s.Plots["hundred"] = bars
	for _, name := range order[2:] {
		s.note("100 claims at once: Quarry's directories are bound %.0f times as fast as those of %s.",
			found[name].Hundred.Wall/found[order[0]].Hundred.Wall, name)
	}
	s.note("local-path-provisioner v0.0.30, built from its module, runs a pod of busybox for each volume made and " +
		"deleted; its client's limit of 5 requests a second " +
		"cannot be raised by a flag. The modules of csi-driver-host-path and TopoLVM could not be fetched by the Go " +
		"command where this was written, so they are not here.")
	s.Details["lives"] = found
	return nil
}

// peer measures claims of a class one by one, and a hundred at once.
func (b *bench) peer(ctx context.Context, class string, l *life) error {
	for range min(b.Rounds, 5) {
		if err := b.one(ctx, class, l); err != nil {
			return err
		}
	}
	if err := b.begin(ctx, l); err != nil {
		return err
	}
	names := b.names("peer", 100)
	times, wall, err := b.claims.Bind(ctx, wish(class, claimSize, names))
	if err != nil {
		return err
	}
	l.Hundred = measure.Summarize(times, wall)
	b.say("%s: 100 at once in %.1f s", class, wall.Seconds())
	if times, wall, err = b.claims.Delete(ctx, names); err != nil {
		return err
	}
	l.Deleted = measure.Summarize(times, wall)
	return b.end(ctx, l, 100)
}

// prepareLocalPath makes what its manifest makes, but for the Deployment.
func (b *bench) prepareLocalPath(ctx context.Context) error {
	core := b.kube.CoreV1()
	if _, err := core.Namespaces().Create(ctx,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: localPathNamespace}},
		metav1.CreateOptions{}); err != nil {
		return err
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "local-path-provisioner-service-account"}}
	if _, err := core.ServiceAccounts(localPathNamespace).Create(ctx, account, metav1.CreateOptions{}); err != nil {
		return err
	}
	data := map[string]string{
		"config.json": fmt.Sprintf(`{"nodePathMap":[{"node":"DEFAULT_PATH_FOR_NON_LISTED_NODES","paths":[%q]}]}`,
			localPathDir),
		"setup":    "#!/bin/sh\nset -eu\nmkdir -m 0777 -p \"$VOL_DIR\"\n",
		"teardown": "#!/bin/sh\nset -eu\nrm -rf \"$VOL_DIR\"\n",
		"helperPod.yaml": "apiVersion: v1\nkind: Pod\nmetadata: {name: helper-pod}\nspec:\n  priorityClassName: " +
			"system-node-critical\n" +
			"  containers:\n  - {name: helper-pod, image: " + build.BusyboxImage + ", imagePullPolicy: Never}\n",
	}
	config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "local-path-config"}, Data: data}
	if _, err := core.ConfigMaps(localPathNamespace).Create(ctx, config, metav1.CreateOptions{}); err != nil {
		return err
	}
	return b.class(ctx, localPath, "rancher.io/local-path")
}

func (b *bench) startLocalPath(ctx context.Context, args []string) (stop func(), err error) {
	program, err := b.cluster.Peer(ctx, "local-path-provisioner")
	if err != nil {
		return nil, err
	}
	command := exec.Command(program, append([]string{"start", "--kubeconfig", b.cluster.Kubeconfig(), "--namespace",
		localPathNamespace,
		"--helper-image", build.BusyboxImage}, args...)...)
	// What it mounts as a ConfigMap in its pod it looks for there, too, for
	// changes.
	dir, err := os.MkdirTemp("", "quarry-bench-local-path-")
	if err != nil {
		return nil, err
	}
	config, err := b.kube.CoreV1().ConfigMaps(localPathNamespace).Get(ctx, "local-path-config", metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for name, text := range config.Data {
		files[name] = []byte(text)
	}
	if err := measure.WriteFiles(dir, files); err != nil {
		return nil, err
	}
	command.Args = append(command.Args, "--config", dir+"/config.json")
	command.Env = append(os.Environ(), "CONFIG_MOUNT_PATH="+dir)
	end, err := b.child(ctx, localPath, command)
	return func() {
		if end != nil {
			end()
		}
		_ = os.RemoveAll(dir)
	}, err
}
