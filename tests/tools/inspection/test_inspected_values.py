"""The facts about values and tags of a cache in this process, and of a namespace on Redis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from onegov_ormcache.errors import ConfigurationError, StoreUnreachable
from onegov_ormcache.redis_client.client import hash_tag
from onegov_ormcache.tools.inspection.sites import NothingThere, Site
from onegov_ormcache.tools.inspection.tags import tags_of
from onegov_ormcache.tools.inspection.values import ValueFacts, by_property, decoded, values_of
from tests.support.applications import Applications, change, value
from tests.support.backends import Backend
from tests.support.models import User
from tests.tools.inspection.inspected_town import Town, read


def facts(site: Site, tenant: str) -> dict[str, ValueFacts]:
    """The values of a tenant, by the short name of their property."""
    found = values_of(site, tenant)
    assert not found.is_cut
    assert not found.unreadable
    return {(each.where or each.key).rpartition('.')[2]: each for each in found.values}


@pytest.fixture
def bare(servers_backend: Backend) -> Iterator[Site]:
    """The site of the same namespace, without the application."""
    settings = servers_backend.settings
    made = Site.at(settings['redis_url'], settings['namespace'])
    yield made
    made.close()


def test_values_are_listed(site: Site, tenant: str) -> None:
    """Each value has its property, its arguments, its size and its tags, and is valid."""
    found = facts(site, tenant)
    assert found.keys() == {'names', 'name', 'titles', 'short_lived'}
    assert found['name'].variant == '(1)'
    assert found['names'].variant == ''
    assert 'table:users' in found['names'].tags
    assert all(each.is_valid and each.size > 0 for each in found.values())
    assert (found['short_lived'].left or 0) <= 60


def test_a_change_makes_a_value_invalid(site: Site, town: Town, tenant: str) -> None:
    """A value of which a tag has changed says so; it is valid again when it was computed anew."""
    change(town, tenant, User(name='Bea'))
    found = facts(site, tenant)
    assert not found['names'].is_valid
    assert found['names'].changed == ('table:users',)
    assert found['titles'].is_valid
    value(town, tenant, read)
    assert facts(site, tenant)['names'].is_valid


def test_values_without_application(
    bare: Site, on_servers: Applications, tenant: str
) -> None:
    """Redis alone tells the same of keys, sizes, tags and validity, but no properties."""
    app = on_servers.start(Town)
    change(app, tenant, User(name='Ada'))
    value(app, tenant, read)
    known = {each.key: each for each in values_of(Site.of(app.orm_cache), tenant).values}
    found = {each.key: each for each in values_of(bare, tenant).values}
    assert found.keys() == known.keys()
    for key, each in found.items():
        assert each.where is None
        assert each.is_valid
        assert (each.size, each.tags) == (known[key].size, known[key].tags)
        assert decoded(bare, tenant, key).text == decoded(
            Site.of(app.orm_cache), tenant, key
        ).text


@pytest.mark.parametrize('backend', ['servers'], indirect=True)
def test_age(site: Site, tenant: str) -> None:
    """On Redis a value tells when it was stored, with and without a lifetime of its own."""
    found = facts(site, tenant)
    for name in 'names', 'short_lived':
        age = found[name].age
        assert age is not None
        assert 0 <= age < 60


def test_one_property(site: Site, tenant: str) -> None:
    """The values of one property can be asked for."""
    found = values_of(site, tenant, site.find_property('name'))
    assert [each.variant for each in found.values] == ['(1)']


def test_more_values_than_asked_for(site: Site, tenant: str) -> None:
    """A list that is not complete says so."""
    found = values_of(site, tenant, most=2)
    assert len(found.values) == 2
    assert found.is_cut


def test_decoded(site: Site, tenant: str) -> None:
    """A value is shown as Python shows it."""
    key = facts(site, tenant)['names'].key
    assert decoded(site, tenant, key).text == "['Ada']"


def test_decoded_value_that_is_not_there(site: Site, tenant: str) -> None:
    """A key that is not there is an error, which names one that may be meant."""
    key = facts(site, tenant)['names'].key
    with pytest.raises(NothingThere, match=r'did you mean .*names'):
        decoded(site, tenant, key + 'x')


def test_by_property(site: Site, tenant: str) -> None:
    """Values are put together by their properties."""
    grouped = dict(by_property(values_of(site, tenant)))
    assert len(grouped) == 4
    assert all(name.rpartition('.')[2] in ('names', 'name', 'titles', 'short_lived')
               for name in grouped)  # fmt: skip


@pytest.mark.parametrize('backend', ['servers'], indirect=True)
def test_damaged_values_are_counted(
    site: Site, tenant: str, servers_backend: Backend
) -> None:
    """Keys that are no values are counted, and do not hide the others."""
    settings = servers_backend.settings
    prefix = f'{hash_tag(settings["namespace"], tenant)}:value:'
    with redis.Redis.from_url(settings['redis_url']) as client:
        client.set(f'{prefix}damaged', b'nonsense')
        client.hset(f'{prefix}hash', 'a', 'b')
        client.set(b'%s\xff' % prefix.encode(), b'no text')
    found = values_of(site, tenant)
    assert len(found.values) == 4
    assert found.unreadable == 2


@pytest.mark.parametrize('backend', ['servers'], indirect=True)
def test_a_large_stamp_is_read(site: Site, town: Town, tenant: str) -> None:
    """A value whose stamp is longer than what is read at first is listed, too."""
    shared = town.orm_cache.shared_tier
    key = facts(site, tenant)['names'].key
    stored = shared.get(tenant, key)
    assert stored is not None
    state = site.tags.state(tenant)
    assert state is not None
    stamp = {f'table:t{number}': state.snapshot.birth for number in range(500)}
    assert shared.fill(tenant, 'large', stored._replace(stamp=stamp))
    large = facts(site, tenant)['large']
    assert len(large.tags) == 500
    assert large.is_valid


def test_tags(site: Site, town: Town, tenant: str) -> None:
    """A change gives its table's tag another version, and nothing is in doubt afterwards."""
    before = tags_of(site, tenant)
    change(town, tenant, User(name='Bea'))
    after = tags_of(site, tenant)
    assert before is not None
    assert after is not None
    assert before.epoch != after.epoch
    versions = [{tag.name: tag.version for tag in each.tags} for each in (before, after)]
    assert versions[0]['table:users'] != versions[1]['table:users']
    assert after.doubts == ()
    assert not any(tag.is_in_doubt for tag in after.tags)


def test_doubts(site: Site, town: Town, tenant: str) -> None:
    """A doubt is shown with its tags and its age, and the values that have them are not valid."""
    town.orm_cache.tags.doubt(tenant, 'writer', ['table:users'], ('property:x',), '', {}).result()
    found = tags_of(site, tenant)
    assert found is not None
    (doubt,) = found.doubts
    assert 'table:users' in doubt.tags
    assert doubt.age is not None
    assert 0 <= doubt.age < 60
    assert {tag.name for tag in found.tags if tag.is_in_doubt} == set(doubt.tags)
    assert facts(site, tenant)['names'].in_doubt == ('table:users',)


@pytest.mark.parametrize('backend', ['servers'], indirect=True)
def test_looking_changes_nothing(
    site: Site, tenant: str, servers_backend: Backend
) -> None:
    """No key of Redis is made or changed by looking, also at what is not there."""

    def dump() -> dict[bytes, bytes | None]:
        with redis.Redis.from_url(servers_backend.settings['redis_url']) as client:
            names = client.scan_iter(f'*{servers_backend.settings["namespace"]}*')
            # what was counted before is sent now and then
            return {name: client.dump(name) for name in names if b'}:statistics' not in name}

    site.statistics.flush()  # what this process has counted itself
    before = dump()
    for schema in tenant, 'nowhere':
        tags_of(site, schema)
        values_of(site, schema)
    site.tags.evict('nowhere', ['table:users'], None)
    site.tags.renew('nowhere')
    assert dump() == before
    assert tags_of(site, 'nowhere') is None


@pytest.mark.parametrize('backend', ['servers'], indirect=True)
def test_versions_of_another_server_do_not_count(
    site: Site, tenant: str, servers_backend: Backend
) -> None:
    """Versions that came from a dump of another server are taken for none, as by a process."""
    settings = servers_backend.settings
    with redis.Redis.from_url(settings['redis_url'], decode_responses=True) as client:
        (key,) = client.scan_iter(f'{hash_tag(settings["namespace"], tenant)}:tags:*')
        client.hset(key, 'run_id', 'another')
    assert tags_of(site, tenant) is None
    assert not facts(site, tenant)['names'].is_valid


def test_tenants(site: Site, tenant: str) -> None:
    """Each tenant that was used is known; another name is an error that names one like it."""
    assert site.tenants() == [tenant]
    assert site.require_tenant(tenant) == tenant
    with pytest.raises(NothingThere, match=f'did you mean {tenant!r}'):
        site.require_tenant(tenant + 'x')


def test_namespace_without_tenants(bare: Site) -> None:
    """A namespace that nobody uses is an error that says what to look at."""
    with pytest.raises(NothingThere, match='is it the setting namespace of the application'):
        bare.require_tenant('main')


def test_properties_by_name(site: Site) -> None:
    """A property is found by its whole name or its end, and a wrong one gives a hint."""
    prop = site.find_property('names')
    assert site.find_property(prop.where) is prop
    assert site.find_property('Town.names') is prop
    with pytest.raises(NothingThere, match=r'did you mean .*Town\.names'):
        site.find_property('nmaes')
    with pytest.raises(NothingThere, match='there is no property'):
        site.find_property('quite another')


def test_wrong_namespace_and_url(redis_url: str) -> None:
    """A namespace that no application can have, and a wrong URL, are errors without secrets."""
    with pytest.raises(ConfigurationError, match='namespace'):
        Site.at(redis_url, '{}')
    with pytest.raises(ConfigurationError) as caught:
        Site.at('redis://:secret@host:port/0', 'town')
    assert 'secret' not in str(caught.value)


def test_unreachable_store() -> None:
    """A Redis that is away is an error of the package."""
    site = Site.at('redis://127.0.0.1:1/0', 'town')
    for ask in site.tenants, lambda: tags_of(site, 'main'), lambda: values_of(site, 'main'):
        with pytest.raises(StoreUnreachable):
            ask()
