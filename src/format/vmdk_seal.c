/* vmdk_seal.c: the seal of VMDK's sparse extents, and how it is undone without a record. What the
 * seal is and why: vmdk.c. */
#include "format/bytes.h"
#include "format/vmdk_priv.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ---- plan ---- */

static int add_number(struct plan *plan, const struct vmdk_copy *c, uint32_t at, uint64_t truth,
                      uint64_t sealed, unsigned width)
{
    uint8_t a[8], b[8];

    put_le(a, truth, width);
    put_le(b, sealed, width);
    return at + width > c->n ? -EUCLEAN : plan_add(plan, c->off + at, a, b, width);
}

static int seal_version(struct plan *plan, const struct vmdk_copy *c)
{
    uint32_t version = vmdk_version_of(c);

    return add_number(plan, c, KDMV_VERSION, version, SEALED_VERSION | (version & 0xffff), 4);
}

static bool note_fits(const struct vmdk_copy *c)
{
    static const uint8_t zero[NOTE_LEN];

    return c->note + NOTE_LEN <= c->n && memcmp(c->b + c->note, zero, NOTE_LEN) == 0;
}

/* Seals the note, then the capacity, and that only if the capacity stands somewhere else too: the
 * file alone must tell it. */
static int seal_capacity(struct plan *plan, const struct vmdk_copy *c, const struct vmdk_desc *d,
                         const char *holder)
{
    char note[NOTE_LEN + 1] = "", safe[NOTE_MAX_HOLDER + 1] = "";
    bool fits = note_fits(c);
    int r = 0;

    for (size_t i = 0; holder && holder[i] && i < NOTE_MAX_HOLDER; i++)
        safe[i] = holder[i] >= 0x20 && holder[i] < 0x7f ? holder[i] : '?';
    if (fits) {
        uint8_t zero[NOTE_LEN] = {0};

        snprintf(note, sizeof(note), NOTE_WORD "%s" NOTE_SECTORS "%016" PRIx64,
                 safe[0] ? safe : "?", vmdk_capacity_of(c));
        r = plan_add(plan, c->off + c->note, zero, note, NOTE_LEN);
    }
    if (r < 0 || !(fits || (d && d->n > 0 && !d->why[0] && d->sectors == vmdk_capacity_of(c))))
        return r;
    return add_number(plan, c, KDMV_CAPACITY, vmdk_capacity_of(c), c->sealed_capacity, c->width);
}

/* Sets it to 0. QEMU refuses that where the header says that there is a descriptor; elsewhere it
 * opens a disk of 0 bytes. With a 0 in the footer alone it would open the image, too. */
static int size_plan(const struct vmdk_image *m, struct plan *plan)
{
    int r = add_number(plan, &m->header, KDMV_CAPACITY, vmdk_capacity_of(&m->header), 0,
                       m->header.width);

    if (r == 0 && m->has_footer)
        r = add_number(plan, &m->footer, KDMV_CAPACITY, vmdk_capacity_of(&m->footer), 0,
                       m->footer.width);
    return r;
}

static int cowd_plan(const struct vmdk_image *m, const struct seal_policy *policy,
                     struct plan *plan)
{
    const struct vmdk_copy *c = &m->header;
    uint32_t grain = le32(c->b + COWD_GRAIN);
    int r = add_number(plan, c, COWD_GRAIN, grain, SEALED_GRAIN + grain, 4);

    if (r == 0)
        r = seal_version(plan, c);
    return r < 0 ? r : seal_capacity(plan, c, NULL, policy->holder);
}

static int kdmv_plan(const struct vmdk_image *m, const struct seal_policy *policy,
                     struct plan *plan)
{
    int r = 0;

    if (m->has_footer)
        r = seal_version(plan, &m->footer);
    if (r == 0)
        r = seal_version(plan, &m->header);
    if (r == 0 && m->has_footer)
        r = seal_capacity(plan, &m->footer, &m->desc, policy->holder);
    if (r == 0)
        r = seal_capacity(plan, &m->header, &m->desc, policy->holder);
    return r < 0 || m->desc.n == 0 || m->desc.why[0] ? r
                                                     : vmdk_desc_seal(&m->desc, m->desc_base, plan);
}

/* QEMU must not be led to the text, where it may abort or find other files. */
static bool size_misleads(const struct vmdk_image *m)
{
    return m->desc.n > 0 && vmdk_desc_followed(&m->desc);
}

int vmdk_plan(struct excerpt *v, const struct seal_policy *policy, struct plan *ret_plan)
{
    struct vmdk_image m;
    enum probe answer = vmdk_load(v, &m);
    int r;

    if (answer == PROBE_NO)
        return vmdk_file_plan(v, ret_plan);
    if (answer == PROBE_MORE)
        return -EAGAIN;
    memset(ret_plan, 0, sizeof(*ret_plan));
    if (vmdk_is_shell(&m)) {
        r = vmdk_desc_seal(&m.desc, m.desc_base, ret_plan);
        return r < 0 ? r : seal_version(ret_plan, &m.header);
    }
    if (policy->mode == SEAL_SIZE && !size_misleads(&m))
        return size_plan(&m, ret_plan);
    return m.cowd ? cowd_plan(&m, policy, ret_plan) : kdmv_plan(&m, policy, ret_plan);
}

/* ---- rescue ---- */

/* The capacity of one copy: its own, else its note; false: neither. */
static bool own_capacity(const struct vmdk_copy *c, uint64_t *ret)
{
    if (vmdk_capacity_sealed(c))
        return vmdk_read_note(c, ret);
    *ret = vmdk_capacity_of(c);
    return true;
}

/* A seal has no note only where the extent lines held the same number. */
static bool line_capacity(const struct vmdk_image *m, uint64_t *ret)
{
    *ret = m->desc.sectors;
    return m->desc.n > 0 && !m->desc.why[0];
}

static bool find_capacity(const struct vmdk_image *m, const struct vmdk_copy *c,
                          const uint64_t *size, uint64_t *ret)
{
    const uint64_t sector = VMDK_SECTOR;

    if (own_capacity(c, ret))
        return true;
    if (vmdk_has_note(c)) /* damaged: the lines need not hold the same number */
        return size ? (*ret = *size / sector, true) : false;
    if (line_capacity(m, ret))
        return true;
    if (size)
        *ret = *size / sector;
    return size != NULL;
}

static void fill_rescue(const struct vmdk_image *m, struct rescue *ret)
{
    const struct vmdk_copy *c = m->used;
    uint64_t sectors;

    memset(ret, 0, sizeof(*ret));
    if (vmdk_is_shell(m)) {
        if (line_capacity(m, &sectors))
            rescue_add(ret, RESCUE_EXACT, m->desc.sectors * VMDK_SECTOR, "extent lines");
    } else if (own_capacity(c, &sectors) && sectors <= VMDK_SECTORS_MAX) {
        rescue_add(ret, RESCUE_EXACT, sectors * VMDK_SECTOR,
                   vmdk_capacity_sealed(c) ? "note in the header" : "capacity");
    } else if (!vmdk_has_note(c) && line_capacity(m, &sectors)) {
        rescue_add(ret, RESCUE_EXACT, sectors * VMDK_SECTOR, "extent lines");
    } else if (m->cowd) {
        uint32_t grain = le32(c->b + COWD_GRAIN) - (vmdk_grain_sealed(m) ? SEALED_GRAIN : 0);

        rescue_add(ret, RESCUE_UPPER,
                   (uint64_t)COWD_GT_ENTRIES * le32(c->b + COWD_GD_ENTRIES) *
                       (grain <= GRAIN_MAX ? grain : 0) * VMDK_SECTOR,
                   "grain directory");
    }
}

static int unseal_copy(const struct vmdk_image *m, const struct vmdk_copy *c, const uint64_t *size,
                       struct plan *plan)
{
    uint32_t version = vmdk_version_of(c);
    uint8_t zero[NOTE_LEN] = {0};
    uint64_t sectors;
    int r = 0;

    if (vmdk_version_sealed(c))
        r = add_number(plan, c, KDMV_VERSION, version & 0xffff, version, 4);
    if (r == 0 && vmdk_has_note(c))
        r = c->note + NOTE_LEN > c->n
                ? -EUCLEAN
                : plan_add(plan, c->off + c->note, zero, c->b + c->note, NOTE_LEN);
    if (r < 0 || !vmdk_capacity_sealed(c))
        return r;
    if (!find_capacity(m, c, size, &sectors))
        return -ENODATA;
    return add_number(plan, c, KDMV_CAPACITY, sectors, c->sealed_capacity, c->width);
}

/* In the order of the seal: what stands first is undone last. */
static int vmdk_unseal(const struct vmdk_image *m, const uint64_t *size, struct plan *plan)
{
    int r = 0;

    if (vmdk_is_shell(m))
        r = vmdk_desc_unseal(&m->desc, m->desc_base, plan);
    if (r == 0 && vmdk_grain_sealed(m)) {
        uint32_t grain = le32(m->header.b + COWD_GRAIN);

        r = add_number(plan, &m->header, COWD_GRAIN, grain - SEALED_GRAIN, grain, 4);
    }
    if (r == 0 && m->has_footer)
        r = unseal_copy(m, &m->footer, size, plan);
    if (r == 0)
        r = unseal_copy(m, &m->header, size, plan);
    return r < 0 || vmdk_is_shell(m) || m->desc.n == 0
               ? r
               : vmdk_desc_unseal(&m->desc, m->desc_base, plan);
}

int vmdk_rescue(struct excerpt *v, const uint64_t *size, struct rescue *ret_rescue,
                struct plan *ret_plan)
{
    struct vmdk_image m;
    enum probe answer = vmdk_load(v, &m);

    if (answer == PROBE_NO)
        return vmdk_file_rescue(v, size, ret_rescue, ret_plan);
    if (answer == PROBE_MORE)
        return -EAGAIN;
    fill_rescue(&m, ret_rescue);
    memset(ret_plan, 0, sizeof(*ret_plan));
    if (size && (*size % VMDK_SECTOR != 0 || *size > INT64_MAX ||
                 (m.cowd && *size / VMDK_SECTOR > UINT32_MAX)))
        return -ERANGE;
    if (size && ret_rescue->n > 0 &&
        (ret_rescue->candidate[0].kind == RESCUE_EXACT ? *size != ret_rescue->candidate[0].size
                                                       : *size > ret_rescue->candidate[0].size))
        return -ERANGE;
    if (size && m.cowd && ret_rescue->n == 0)
        return -ERANGE; /* a grain directory for nothing */
    return vmdk_unseal(&m, size, ret_plan);
}
