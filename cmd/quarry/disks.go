package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/cmd/internal/show"
	"github.com/quarry-storage/quarry/nodeagent"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/listing"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/nodeagent/verify"
)

// disks are the flags of commands that look at a node's pools without an agent.
type disks struct {
	config, node string
	deviceDir    string
	paths        []string
	output       show.Output
	// all: the pools are all that the node has.
	all bool
}

func (d *disks) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&d.config, "config", "/etc/quarry/agent.yaml",
		"the agents' configuration, which names the pools")
	f.StringVar(&d.node, "node-name", os.Getenv("NODE_NAME"),
		"the name of the node, where its pools differ from the others'")
	f.Lookup("node-name").DefValue = "$NODE_NAME"
	f.StringArrayVar(&d.paths, "pool", nil,
		"a pool's path, instead of those of the configuration (repeatable)")
	f.StringVar(&d.deviceDir, "device-dir", disk.DeviceDir,
		"where the links to the devices of Block volumes are (that of quarry standalone)")
	d.output.Flags(f)
}

// pools returns the pools to look at.
func (d *disks) pools() ([]config.Pool, error) {
	if len(d.paths) > 0 {
		var pools []config.Pool
		for _, path := range d.paths {
			c, err := config.Default(path)
			if err != nil {
				return nil, err
			}

			c.Pools[0].Name = fmt.Sprintf("pool-%d", len(pools))
			pools = append(pools, c.Pools[0])
		}

		return pools, nil
	}

	c, err := config.LoadFile(d.config)
	if _, unopened := errors.AsType[*fs.PathError](err); unopened {
		return nil, fmt.Errorf("%w (name pools by --pool where there is no configuration)", err)
	}
	if err != nil {
		return nil, err
	}

	// Without a name it is not known whether this is a node with pools of its own.
	d.all = len(c.Nodes) == 0 || d.node != ""
	return c.PoolsOf(d.node), nil
}

func newListCommand() *cobra.Command {
	var d disks
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the volumes of a node's pools straight from the disk; nothing is changed",
		Long: `List the volumes of a node's pools straight from the disk: also of a disk of
another node or cluster, and of one that its pool does not use. Nothing is
changed.

The output of -o json is stable, for programs: an array with one object for each
pool, in which fields may be added later but none is renamed or means something
else. It holds all that is on disk and is needed to write the cluster's objects
again: the pool's "name" in the configuration, its "identity" (UID, cluster, and
where it was made), the records of its "volumes" with their "origin", and its
"trash" with what deleting was to mean. A pool that cannot be read has "error"
and "reason" in its object; with -o json that is no failure of the command.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := d.output.IsJSON()
			if err != nil {
				return err
			}

			pools, err := d.pools()
			if err != nil {
				return err
			}

			found := listing.Read(pools, d.deviceDir)
			if asJSON {
				return show.JSON(cmd.OutOrStdout(), found)
			}

			errs := []error{printListing(cmd.OutOrStdout(), found)}
			for _, p := range found {
				if p.Error != "" {
					errs = append(errs, fmt.Errorf("pool %s: %s", p.Name, p.Error))
				}
			}

			return errors.Join(errs...)
		},
	}
	d.flags(cmd)

	return cmd
}

// printListing prints a line for each thing that is in a pool.
func printListing(w io.Writer, pools []listing.PoolListing) error {
	rows := [][]string{{"POOL", "VOLUME", "BACKEND", "SIZE", "FILESYSTEM", "CLAIM", "STATE"}}
	volume := func(p *listing.PoolListing, v *record.Volume, state string) {
		rows = append(rows,
			[]string{p.Path, v.ID, v.Backend, show.Size(v.SizeBytes), v.FSType,
				claimText(v), state})
	}

	other := func(p *listing.PoolListing, name, state string) {
		rows = append(rows, []string{p.Path, name, "", "", "", "", state})
	}
	for i := range pools {
		p := &pools[i]
		for j := range p.Volumes {
			volume(p, &p.Volumes[j].Volume, "volume")
		}

		for _, t := range p.Trash {
			state := "being freed"
			if t.RemainingSeconds > 0 {
				state = fmt.Sprintf("trash, kept for %ds more", t.RemainingSeconds)
			}

			if t.Volume == nil {
				other(p, t.Entry, state)
			} else {
				volume(p, t.Volume, state)
			}
		}

		for _, name := range p.Unfinished {
			other(p, name, "unfinished")
		}

		for _, name := range slices.Sorted(maps.Keys(p.Broken)) {
			other(p, name, p.Broken[name])
		}
	}

	return show.Table(w, rows...)
}

// claimText is the claim that a volume is for, or what an orchestrator without
// claims called it.
func claimText(v *record.Volume) string {
	if v.Origin.ClaimName == "" {
		return v.Origin.Attributes[v1alpha1.AttributeName]
	}
	return v.Origin.ClaimNamespace + "/" + v.Origin.ClaimName
}

func newVerifyCommand() *cobra.Command {
	var (
		d       disks
		kube    kubeconfig
		repair  bool
		cluster bool
	)
	cmd := &cobra.Command{
		Use: "verify",
		Short: "Check that pools, records, quotas, images, loop devices and mounts are " +
			"as they must be",
		Long: `Check that pools, records, quotas, images, loop devices and mounts are as they
must be, and with --cluster the API objects. It prints what does not hold and
ends with status 1 if there is anything worse than a note. Nothing is changed
without --repair; the column REPAIR says beforehand what that would do.

With --pool, what belongs to no volume of the pools named (a device link, a
quota) may be of another pool: it is noted, and never repaired.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := d.output.IsJSON()
			if err != nil {
				return err
			}

			pools, err := d.pools()
			if err != nil {
				return err
			}

			var reader client.Reader
			if cluster || kube.path != "" {
				config, err := kube.load()
				if err != nil {
					return err
				}
				if reader, err = objectReader(config); err != nil {
					return err
				}
			}

			findings, err := d.verify(cmd.Context(), pools, reader)
			if err != nil {
				return err
			}

			write := show.Findings
			if asJSON {
				write = show.FindingsJSON
			}

			if err := write(cmd.OutOrStdout(), findings); err != nil {
				return err
			}

			if repair {
				if err := verify.Repair(cmd.Context(), findings); err != nil {
					return err
				}
				if findings, err = d.verify(cmd.Context(), pools, reader); err != nil {
					return err
				}

				fmt.Fprintln(cmd.OutOrStdout(), "after the repair:")
				if err := write(cmd.OutOrStdout(), findings); err != nil {
					return err
				}
			}

			if !verify.Holds(findings) {
				return errFindings
			}

			return nil
		},
	}
	d.flags(cmd)
	kube.flag(cmd)
	cmd.Flags().BoolVar(&repair, "repair", false,
		"do what the column REPAIR says; it loses no data")

	cmd.Flags().BoolVar(&cluster, "cluster", false,
		"compare with the cluster's objects too (implied by --kubeconfig)")
	return cmd
}

func objectReader(config *rest.Config) (client.Reader, error) {
	scheme, err := nodeagent.NewScheme()
	if err != nil {
		return nil, err
	}
	return client.New(config, client.Options{Scheme: scheme})
}

func (d *disks) verify(ctx context.Context, pools []config.Pool,
	reader client.Reader) ([]verify.Finding, error) {
	var expect map[string]disk.Expectation
	var err error
	if reader != nil {
		if expect, err = nodeagent.Identities(ctx, reader, d.node); err != nil {
			return nil, err
		}
	}

	quiet := slog.New(slog.DiscardHandler)
	s := store.New(store.Options{Node: d.node, Pools: pools, DeviceDir: d.deviceDir, Log: quiet})
	for name, e := range expect {
		e.MayCreate = false
		s.Expect(name, e)
	}

	findings := verify.Pools(ctx, s.View(), d.all)
	if reader == nil {
		return findings, nil
	}

	var volumes []store.Volume
	unread := map[[2]string]bool{} // what can't be read is a finding already
	for _, p := range pools {
		in, err := disk.Inspect(p.Path)
		if err != nil {
			unread[[2]string{p.Name, ""}] = true
			continue
		}

		for i := range in.Volumes {
			v := &in.Volumes[i]
			volumes = append(volumes, store.Volume{Volume: *v, Pool: p.Name,
				PoolUID: in.Identity.UID, Path: disk.PathOf(v, p.Path, disk.DeviceDir)})
		}

		for name := range in.Broken {
			unread[[2]string{p.Name, name}] = true
		}
	}

	more, err := nodeagent.VerifyObjects(ctx, reader, d.node, volumes, unread)
	return append(findings, more...), err
}
