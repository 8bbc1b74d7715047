import subprocess
import sys


def test_fast_utilities_import_no_heavy_package():
    code = (
        "import sys\n"
        "from xcfast import ObservationNormalizer, RewardNormalizer, Rollout, RunningMeanStd\n"
        "from xcfast import compute_gae, compute_returns\n"
        "import xcfast.kernels.noise\n"
        "import numpy as np\n"
        "x = np.zeros((2, 1)); compute_gae(x, x, x > 0, last_values=x[0])\n"
        "print(*sorted({'torch', 'numba', 'gymnasium', 'mujoco', 'yaml'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []
