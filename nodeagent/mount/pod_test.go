package mount

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPodIn(t *testing.T) {
	const uid = "0a1b2c3d-1111-2222-3333-0123456789ab"
	for name, groups := range map[string]string{
		"cgroupfs":       "0::/kubepods/besteffort/pod" + uid + "/6d8a\n",
		"systemd":        "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0a1b2c3d_1111_2222_3333_0123456789ab.slice/cri-containerd-6d8a.scope\n",
		"guaranteed":     "0::/kubepods.slice/kubepods-pod0a1b2c3d_1111_2222_3333_0123456789ab.slice\n",
		"version 1":      "12:memory:/kubepods/pod" + uid + "/6d8a\n1:name=systemd:/kubepods/pod" + uid + "/6d8a\n",
		"seen from over": "0::/../../kubepods-pod0a1b2c3d_1111_2222_3333_0123456789ab.slice/x\n",
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, uid, podIn(groups)) })
	}
	require.Empty(t, podIn("0::/system.slice/kubelet.service\n"))
	require.Empty(t, podIn(""))
}
