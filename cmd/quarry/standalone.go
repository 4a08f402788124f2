package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/csi"
	"github.com/quarry-storage/quarry/nodeagent"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/filesystem"
	"github.com/quarry-storage/quarry/nodeagent/publish"
	"github.com/quarry-storage/quarry/nodeagent/standalone"
	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

// lookAgain is how often the pools' disks are looked at, when one may have come
// or gone.
const lookAgain = 5 * time.Second

type standaloneFlags struct {
	logs                logging
	pools               []string
	endpoint, node      string
	filesystem          string
	reserve, overcommit string
	enableQuota         bool
	requireMountpoint   bool
	inline              bool
	takeOver            bool
	maxVolumes          int64
	deviceDir           string
}

func newStandaloneCommand() *cobra.Command {
	var o standaloneFlags
	cmd := &cobra.Command{
		Use:     "standalone",
		Short:   "Serve CSI on one machine, without Kubernetes: records are on disk only",
		Example: "  quarry standalone --pool /volumes --endpoint unix:///run/quarry/csi.sock",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	o.logs.flag(cmd)
	host, _ := os.Hostname()
	f := cmd.Flags()
	f.StringArrayVar(&o.pools, "pool", nil,
		"a directory that volumes are carved out of, or name=directory; may be repeated")
	endpoint := "unix:///run/quarry/csi.sock"
	if env := os.Getenv("CSI_ENDPOINT"); env != "" { // spec.md, "Environment Variables"
		endpoint = env
	}
	f.StringVar(&o.endpoint, "endpoint", endpoint, "the unix socket that is served")
	f.Lookup("endpoint").DefValue = "$CSI_ENDPOINT, or unix:///run/quarry/csi.sock"
	f.StringVar(&o.node, "node-id", strings.ToLower(host),
		"what this machine is called: the CSI node id")
	f.Lookup("node-id").DefValue = "the host's name"
	f.StringVar(&o.filesystem, "default-filesystem", config.DefaultFilesystem,
		"what is made in images when nobody says: ext4, xfs or btrfs")
	f.StringVar(&o.reserve, "reserve", config.DefaultReserve,
		"what of each pool's filesystem is never promised: a percentage or a size")
	f.StringVar(&o.overcommit, "overcommit", config.DefaultOvercommit,
		"how many times over the rest may be promised")
	f.BoolVar(&o.enableQuota, "enable-quota", false,
		"switch simple quotas on where a pool is on a btrfs that has none")
	f.BoolVar(&o.requireMountpoint, "require-mountpoint", false,
		"use a pool only while something is mounted at its path: for disks of their own")
	f.BoolVar(&o.inline, "inline-volumes", false,
		"make the inline volumes that pods ask for at publish")
	f.BoolVar(&o.takeOver, "take-over", false,
		"use pools that another machine used last, and volumes that were copied here from a pool "+
			"that this machine does not have: they were moved here, and no other machine has them any more")
	f.Int64Var(&o.maxVolumes, "max-volumes", 0,
		"how many volumes may be published here (0: no limit)")
	f.StringVar(&o.deviceDir, "device-dir", disk.DeviceDir,
		"where links to the devices of Block volumes are made; must be emptied at boot")
	if err := cmd.MarkFlagRequired("pool"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

func (o *standaloneFlags) run(ctx context.Context) error {
	log, err := o.logs.setUp()
	if err != nil {
		return err
	}
	if errs := validation.IsValidLabelValue(o.node); o.node == "" || len(errs) > 0 {
		return fmt.Errorf("--node-id %q: %s", o.node,
			strings.Join(append(errs, "it is the value of a topology"), "; "))
	}
	if !filesystem.Type(o.filesystem).Valid() {
		return fmt.Errorf("--default-filesystem %q is none of %v", o.filesystem, filesystem.Types())
	}
	pools, err := o.config()
	if err != nil {
		return err
	}
	listener, err := csi.Listen(o.endpoint) // first: it proves that no other process has these pools by this endpoint
	if err != nil {
		return err
	}
	nodeagent.ThisMachine().Log(log)
	disks := store.New(store.Options{Node: o.node, MachineID: nodeagent.MachineID(log),
		Pools: pools, ByClaimIndex: true,
		Log: log, DeviceDir: o.deviceDir, LockDir: disk.LockDir})
	takeFrom := ""
	if o.takeOver {
		takeFrom = disk.Anybody
	}
	for _, p := range pools {
		disks.Expect(p.Name, disk.Expectation{MayCreate: true, TakeFrom: takeFrom})
	}
	disks.Refresh(ctx)
	log.InfoContext(ctx, "volumes are up", "node", o.node, "volumes", len(disks.List()))
	if o.takeOver {
		takeCopies(ctx, disks, log)
	}
	publisher := &publish.Publisher{Store: disks}
	if err := publisher.Sweep(ctx); err != nil {
		log.WarnContext(ctx, "take away what a crash left", "error", err)
	}
	volumes := &standalone.Volumes{Store: disks, Node: o.node}
	server := &csi.Server{
		Identity: &csi.Identity{Version: version,
			Ready: func(context.Context) error { return anyOnline(disks) }},
		Controller: &csi.Controller{Volumes: volumes, Catalogue: volumes,
			Parameters: parameters.ApplyAlone},
		Node: &csi.Node{Name: o.node, Volumes: publisher, MaxVolumes: o.maxVolumes,
			Parameters: parameters.ApplyAlone},
		IDs: &standalone.IDs{Store: disks, Node: o.node},
		Log: log,
	}
	if o.inline {
		server.Node.Inline = &publish.Inline{Store: disks}
	}
	o.introduce(log)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.Serve(ctx, listener) })
	group.Go(func() error { disks.Run(ctx); return nil })
	group.Go(func() error { disks.KeepEnforced(ctx, store.DefaultRecheckEvery); return nil })
	group.Go(func() error { return disks.Watch(ctx) })
	group.Go(func() error { return refreshEvery(ctx, disks, lookAgain) })
	return group.Wait()
}

// introduce says what is served, and what a client of it needs.
func (o *standaloneFlags) introduce(log *slog.Logger) {
	services := "Identity, Controller, Node"
	if o.inline {
		services += " (with inline volumes)"
	}
	log.Info("what a client needs",
		"endpoint", o.endpoint,
		"plugin", v1alpha1.CSIDriver,
		"services", services,
		"topology", v1alpha1.TopologyNode+"="+o.node,
		"ids", "<volume>@"+o.node,
		"machines", "one plugin id for each: a machine serves its own volumes only",
		"paths", "volumes are mounted where this process runs: the directories of stage and publish have to be there")
}

// takeCopies makes volumes of what was copied here from pools that are not here.
func takeCopies(ctx context.Context, s *store.Store, log *slog.Logger) {
	for _, p := range s.Pools() {
		for name, why := range p.Broken {
			var copied *disk.CopyError
			if !errors.As(why, &copied) || copied.ID != name {
				continue
			}
			if err := s.TakeCopy(ctx, name); err != nil {
				log.WarnContext(ctx, "take a copy for the volume", "pool", p.Name, "volume", name, "error", err)
				continue
			}
			if _, err := s.Activate(ctx, name); err != nil {
				log.WarnContext(ctx, "bring up what was a copy", "pool", p.Name, "volume", name, "error", err)
			}
		}
	}
}

// config is what the flags say of the pools.
func (o *standaloneFlags) config() ([]config.Pool, error) {
	reserve, err := config.ParseReserve(o.reserve)
	if err != nil {
		return nil, fmt.Errorf("--reserve: %w", err)
	}
	overcommit, err := config.ParseOvercommit(o.overcommit)
	if err != nil {
		return nil, fmt.Errorf("--overcommit: %w", err)
	}
	var pools []config.Pool
	for _, text := range o.pools {
		name, path, named := strings.Cut(text, "=")
		if !named {
			name, path = "default", text
		}
		// One at a time, so that the checks of the configuration file hold here
		// too.
		c, err := config.Default(path)
		if err != nil {
			return nil, fmt.Errorf("--pool %s: %w", text, err)
		}
		p := c.Pools[0]
		if errs := validation.IsDNS1123Label(name); len(errs) > 0 {
			return nil, fmt.Errorf("--pool %s: the name: %s", text, strings.Join(errs, "; "))
		}
		for _, other := range pools {
			if other.Name == name || other.Path == p.Path {
				return nil, fmt.Errorf("--pool %s: there is pool %s=%s already", text, other.Name,
					other.Path)
			}
		}
		p.Name, p.Reserve, p.Overcommit, p.DefaultFilesystem = name, reserve, overcommit, o.filesystem
		p.EnableQuota, p.RequireMountpoint = o.enableQuota, o.requireMountpoint
		pools = append(pools, p)
	}
	return pools, nil
}

// anyOnline returns nil when at least one pool can be used.
func anyOnline(s *store.Store) error {
	var errs []error
	for _, p := range s.Pools() {
		if p.Offline == nil {
			return nil
		}
		errs = append(errs, p.Offline)
	}
	return errors.Join(errs...)
}

func refreshEvery(ctx context.Context, s *store.Store, every time.Duration) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			s.Glance(ctx)
		}
	}
}
