package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/test/measure"
)

// million is how many files a full volume has.
const million = 1_000_000

// deletion measures how long a claim takes to go by how many files its volume
// has. For a directory the number counts, for an image it does not.
func (b *bench) deletion(ctx context.Context, s *Section) error {
	root, err := b.cluster.Root(node)
	if err != nil {
		return err
	}
	t := s.table("", "1 file, ms", fmt.Sprintf("%d files, ms", million))
	for _, kind := range kinds[1:] {
		cells := []any{kind.name}
		for _, files := range []int{1, million} {
			names := b.names("files", 1)
			if _, _, err := b.claims.Bind(ctx, wish(kind.class, "4Gi", names)); err != nil {
				return err
			}
			claim, err := b.kube.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, names[0], metav1.GetOptions{})
			if err != nil {
				return err
			}
			pv, err := b.kube.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
			if err != nil {
				return err
			}
			made, err := fill(filepath.Join(root, pv.Spec.Local.Path), files)
			if err != nil {
				return err
			}
			gone, _, err := b.claims.Delete(ctx, names)
			if err != nil {
				return err
			}
			if made < files {
				cells = append(cells, fmt.Sprintf("%.0f (of %d files: its filesystem holds no more)",
					measure.Milliseconds(gone[0]), made))
			} else {
				cells = append(cells, measure.Milliseconds(gone[0]))
			}
			b.say("delete: %s with %d files: %s", kind.name, made, gone[0])
		}
		t.Row(cells...)
	}
	s.note("From the claim's deletion to the end of its PersistentVolume; its space comes back as the files go, in " +
		"the background.")
	return nil
}

// fill makes empty files, a thousand in each directory, and returns how many it
// could make.
func fill(dir string, files int) (int, error) {
	const each = 1000
	for i := range files {
		sub := filepath.Join(dir, fmt.Sprintf("d%d", i/each))
		if i%each == 0 {
			if err := os.Mkdir(sub, 0o755); err != nil {
				return i, ignoreFull(err)
			}
		}
		file, err := os.Create(filepath.Join(sub, fmt.Sprintf("f%d", i)))
		if err != nil {
			return i, ignoreFull(err)
		}
		if err := file.Close(); err != nil {
			return i, err
		}
	}
	return files, nil
}
