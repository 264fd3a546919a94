"""launch/gke_jobset.yaml: what no cluster would accept, or would run otherwise than is meant."""

import math
import re
from pathlib import Path

import pytest
import yaml

from mim_jax.main import parse

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / 'launch' / 'gke_jobset.yaml').read_text()
# GKE's machine types for slices of several hosts have four chips each.
CHIPS = 4


@pytest.fixture
def jobset():
    return yaml.safe_load(TEXT)


@pytest.fixture
def job(jobset):
    (replicated,) = jobset['spec']['replicatedJobs']
    return replicated['template']['spec']


@pytest.fixture
def pod(job):
    return job['template']['spec']


@pytest.fixture
def container(pod):
    (container,) = pod['containers']
    return container


def test_hosts_and_chips_are_those_of_the_topology(job, pod, container):
    sides = pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x')
    chips = container['resources']['limits']['google.com/tpu']
    assert container['resources']['requests'] == container['resources']['limits']
    assert chips == CHIPS
    assert job['parallelism'] == job['completions'] == math.prod(map(int, sides)) / chips


def test_hosts_of_the_table_in_the_documentation():
    rows = re.findall(
        r'^\| `(tpu-[\w-]+)` \| `([\dx]+)` \| (\d+) \|',
        (ROOT / 'docs' / 'launch.md').read_text(),
        re.M,
    )
    assert len(rows) >= 4
    for accelerator, topology, hosts in rows:
        sides = [int(side) for side in topology.split('x')]
        assert len(sides) == (2 if 'lite' in accelerator or 'v6e' in accelerator else 3)
        assert math.prod(sides) == CHIPS * int(hosts)


def test_pods_find_each_other_by_a_service(jobset, job):
    assert jobset['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
    assert jobset['spec']['network']['enableDNSHostnames'] is True
    assert job['completionMode'] == 'Indexed'  # a pod's host name has its number
    # NAME-slice-0-0, with five more characters in the pod's own name.
    assert re.fullmatch('[a-z]([a-z0-9-]*[a-z0-9])?', jobset['metadata']['name'])
    assert len(jobset['metadata']['name']) < 40


def test_a_run_that_is_stopped_before_its_end_is_started_again(jobset, job, pod, container):
    """However often it is stopped by a signal or its node taken away; after errors, some times."""
    policy = jobset['spec']['failurePolicy']
    (rule,) = policy['rules']
    assert rule['action'] == 'RestartJobSetAndIgnoreMaxRestarts'
    assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
    assert policy['maxRestarts'] > 0
    # Only with these does a pod that fails fail its Job, and by that start all of them again.
    assert job['backoffLimit'] == 0 and pod['restartPolicy'] == 'Never'
    by_status, by_condition = job['podFailurePolicy']['rules']
    assert by_status['action'] == by_condition['action'] == 'FailJob'
    assert by_status['onExitCodes']['containerName'] == container['name']
    assert by_condition['onPodConditions'] == [{'type': 'DisruptionTarget'}]
    # A stopped run that ended with 0 would count as completed.
    options, _ = parse(container['args'])
    assert options.stopped_status in by_status['onExitCodes']['values']
    assert options.stopped_status not in (0, 2)
    assert pod['terminationGracePeriodSeconds'] >= 300


def test_arguments_are_those_of_the_training_command(container):
    assert container['command'] == ['python', '-m', 'mim_jax.main']
    options, assignments = parse(container['args'])
    assert (ROOT / options.config).exists() and options.workdir.startswith('gs://')
    assert {name for name, _ in assignments} == {
        'data.source.path',
        'objective.target.weights',
    }


def test_batches_find_room_in_shared_memory_and_data_in_the_bucket(pod, container):
    mounts = {mount['mountPath']: mount['name'] for mount in container['volumeMounts']}
    volumes = {volume['name']: volume for volume in pod['volumes']}
    assert set(mounts) == {'/dev/shm', '/data'} and set(mounts.values()) == set(volumes)
    assert volumes[mounts['/dev/shm']]['emptyDir'] == {'medium': 'Memory'}
    assert volumes[mounts['/data']]['csi']['driver'] == 'gcsfuse.csi.storage.gke.io'
    _, assignments = parse(container['args'])
    assert dict(assignments)['data.source.path'].startswith('/data/')


def test_a_person_can_edit_it():
    assert '\t' not in TEXT
    assert len(list(yaml.safe_load_all(TEXT))) == 1
